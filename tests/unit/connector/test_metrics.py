"""The workers' counts become metrics: successive readings add up, and each series has its labels."""

from types import SimpleNamespace
from typing import Any

import pytest

from pd_connector.engine import compat
from pd_connector.engine.metrics import COUNTERS, GAUGES, HISTOGRAMS, label_values, merge, summary


def test_a_text_with_spaces_is_one_label_unless_there_are_several() -> None:
    assert label_values("10.0.0.1:21001 vmm", 2) == ["10.0.0.1:21001", "vmm"]
    assert label_values("peer lost", 1) == ["peer lost"]
    assert label_values("", 0) == []


def test_two_looks_are_one() -> None:
    one = {"counts": [["loads", "loaded", 2]], "gauges": [["peer_up", "a tcp", 1]], "spans": [["stage", "put", [1.0]]]}
    two = {"counts": [["loads", "loaded", 3]], "gauges": [["peer_up", "a tcp", 0]], "spans": [["stage", "put", [3.0]]]}

    assert merge(one, two) == {
        "counts": [["loads", "loaded", 5]],
        "gauges": [["peer_up", "a tcp", 0]],
        "spans": [["stage", "put", [1.0, 3.0]]],
    }
    assert summary(merge(one, two)) == {"loads loaded": 5, "stage put mean ms": 2000.0}
    assert merge({}, one) == one


V2 = {"use_v2_model_runner": True}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (V2, "v2 0.33.0 fp32"),
        (V2 | {"model_config": SimpleNamespace(use_fp64_gumbel=True)}, "v2 0.33.0 fp64"),
        (V2 | {"speculative_config": None}, "v2 0.33.0 fp32"),
        (V2 | {"speculative_config": object()}, ""),
        (V2 | {"watermark_config": object()}, ""),
        (V2 | {"diffusion_config": object()}, ""),
        ({"use_v2_model_runner": False}, ""),
        ({}, ""),
    ],
)
def test_how_an_engine_draws_for_a_seed_is_said_only_if_the_position_decides(
    config: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "_version", lambda: "0.33.0")
    assert compat.seeded_draws(SimpleNamespace(**{"model_config": SimpleNamespace(), **config})) == expected


@pytest.mark.parametrize(
    ("defaults", "model", "expected"),
    [
        ({}, {}, ("", "")),
        ({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}, {}, ("", "")),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.0}, {}, ("presence_penalty", "")),
        ({"frequency_penalty": 1, "max_tokens": 512}, {}, ("frequency_penalty", "512")),
        ({"skip_special_tokens": False}, {}, ("skip_special_tokens", "")),
        ({}, {"logits_processors": ["a.b"]}, ("logits_processors", "")),
    ],
)
def test_what_an_engine_does_unasked_to_an_answer_is_said(
    defaults: dict[str, Any], model: dict[str, Any], expected: tuple[str, str]
) -> None:
    config = SimpleNamespace(get_diff_sampling_param=lambda: defaults, **model)
    assert compat.own_sampling(SimpleNamespace(model_config=config)) == expected
    assert compat.own_sampling(SimpleNamespace(model_config=SimpleNamespace(**model))) == (
        expected[0] if model else "",
        "",
    )


def test_names_follow_prometheus() -> None:
    for table, end in ((COUNTERS, "_total"), (GAUGES, ""), (HISTOGRAMS, "_seconds")):
        for series, text, _ in table.values():
            assert series.startswith("pd_kv_")
            assert series.endswith(end)
            assert text.endswith(".")
