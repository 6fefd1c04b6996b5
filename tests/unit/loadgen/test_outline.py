"""The outline of a load is what would be sent, without its prompts."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pd_loadgen.workload import plan
from pd_loadgen.workload.options import load
from pd_loadgen.workload.outline import outline
from pd_loadgen.workload.plan import PlanError

COMMON = {"rate": "20", "duration": "3", "seed": "4"}


def sent(options: Mapping[str, str]) -> list[tuple[float, int | None, int]]:
    """What `plan.make` writes: offsets, tokens of the prompts where it knows them, and of the answers."""
    given = load(options, {})
    slots = plan._slots(given, plan.Source(given, ""))
    return [(slot.offset, slot.content.input_tokens, slot.content.output_tokens) for slot in slots]


@pytest.mark.parametrize(
    "more",
    [
        {"input_tokens": "100", "output_tokens": "7"},
        {"input_tokens": "100", "output_tokens": "7", "range_ratio": "0.5", "arrival": "gamma", "burstiness": "0.5"},
        {"prefix_tokens": "64", "prefixes": "3"},
        {"turns": "3", "input_tokens": "50"},
        {"arrival": "ramp", "start_rate": "1", "requests": "20"},
    ],
)
def test_the_outline_is_what_would_be_sent(more: dict[str, str]) -> None:
    options = {**COMMON, **more}

    assert [(one.offset, one.input_tokens, one.output_tokens) for one in outline(load(options, {})).requests] == sent(
        options
    )


def test_a_trace_in_which_no_request_has_an_answer_is_refused_with_what_was_left_out(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:15:46.680,1000,0\n" * 3)

    with pytest.raises(PlanError, match=r"trace\.csv: no request is left to send; .*3"):
        outline(load({"arrival": "replay", "trace": str(trace)}, {}))


def test_a_trace_keeps_its_shared_blocks(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [7, 8]},
        {"timestamp": 500, "input_length": 600, "output_length": 6, "hash_ids": [7, 9]},
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))

    first, second = outline(load({"arrival": "replay", "trace": str(trace), "time_scale": "0.5"}, {})).requests

    assert (first.offset, first.input_tokens, first.shared) == (0.0, 1000, (("7", 512), ("8", 488)))
    assert (second.offset, second.output_tokens, second.shared) == (0.25, 6, (("7", 512), ("9", 88)))


def test_prefixes_and_turns_are_shared() -> None:
    prefixed = outline(load({**COMMON, "prefix_tokens": "64", "prefixes": "2"}, {})).requests
    assert [one.shared for one in prefixed[:3]] == [(("prefix 0", 64),), (("prefix 1", 64),), (("prefix 0", 64),)]

    turns = outline(
        load({**COMMON, "turns": "2", "input_tokens": "50", "output_tokens": "10", "requests": "4"}, {})
    ).requests
    assert turns[2].shared[0] == turns[0].shared[0]
    assert sum(tokens for _, tokens in turns[2].shared) == turns[2].input_tokens == 110


def test_texts_of_a_file_are_estimated(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        json.dumps({"prompt": "one two three four", "output_tokens": 9})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "one two"}]})
        + "\n"
        + json.dumps({"prompt": [1, 2, 3]})
        + "\n"
    )
    options = {**COMMON, "dataset": "jsonl", "dataset_path": str(file), "output_tokens": "5", "requests": "3"}

    found = outline(load(options, {})).requests

    assert [(one.input_tokens, one.output_tokens) for one in found] == [(4, 9), (2, 5), (3, 5)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"arrival": "closed", "requests": "5", "max_concurrency": "2"}, "cannot be listed beforehand"),
        ({"mode": "phase-split", "requests": "5"}, "cannot be listed beforehand"),
        ({"rate": "0.001", "duration": "1"}, "no request falls into"),
        ({"dataset": "jsonl", "dataset_path": "/nowhere.jsonl"}, "there is no such file or folder"),
    ],
)
def test_a_load_without_an_outline_is_refused_with_the_reason(options: dict[str, str], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        outline(load(options, {}))
