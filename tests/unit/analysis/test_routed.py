"""Combined engines that serve in another way than plain vLLM are a deployment of their own: in names, groups, baselines and checks."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from support.analysis import constant, deployment, manifest, power_log, run, staged, workload

from pd_analysis.conclusions.sweeps import pairs
from pd_analysis.numbers.evaluation import evaluate, grouped
from pd_analysis.numbers.sweep import sweeps
from pd_analysis.numbers.trust import strangers, tokens_apart
from pd_analysis.records.run import Run
from pd_analysis.tables.setup import setup
from pd_contracts.names import Connector, Role, Topology
from pd_contracts.records import EngineInfo, EngineTokens

ADAPTIVE = {"ROUTING": "adaptive", "TTFT_SLO_MS": "300"}


def combined(
    *,
    both: bool,
    settings: dict[str, str] | None = None,
    whys: Sequence[str] = ("",),
    seed: int = 0,
    rate: float = 1.0,
    requests: int = 40,
) -> Run:
    """Two combined engines, with `both` such that combined-0 hands over to combined-1."""
    records = [
        staged(
            index,
            prefill=1.0,
            prefill_instance="combined-0" if both else "",
            decode_instance="combined-1",
            first_token="prefill" if both else "",
            why=whys[index % len(whys)],
        )
        for index in range(requests)
    ]
    engines = [
        EngineInfo(name=f"combined-{n}", role=Role.COMBINED, gpus=[n], connector=Connector.P2P if both else None)
        for n in range(2)
    ]
    about = deployment(Topology.COMBINED, engines=engines, settings=settings or {}, label="2 combined")
    found = run(records, manifest(deployment=about, workload=workload(seed=seed, rate=rate)))
    return replace(found, path=found.path / f"{both}{whys[0]}{seed}{rate}")


@pytest.mark.parametrize(
    ("measured", "label"),
    [
        pytest.param(combined(both=False), "2 combined", id="plain"),
        pytest.param(combined(both=True), "2 combined both roles", id="with KV_BOTH alone"),
        pytest.param(combined(both=True, settings=ADAPTIVE), "2 combined adaptive", id="by the recorded settings"),
        pytest.param(combined(both=True, settings={"REJECT": "slo"}), "2 combined both roles", id="another setting"),
        pytest.param(combined(both=False, settings=ADAPTIVE), "2 combined adaptive without KV_BOTH", id="no hand-over"),
        pytest.param(combined(both=True, whys=("handed over", "plain")), "2 combined adaptive", id="by its requests"),
        pytest.param(
            combined(both=True, whys=("handed over", "local")), "2 combined local_first", id="the simple form"
        ),
        pytest.param(combined(both=True, whys=("handed over",)), "2 combined routed", id="one of the two"),
    ],
)
def test_a_deployment_is_named_after_its_manner(measured: Run, label: str) -> None:
    (result,) = evaluate([measured])

    assert result.label == label
    assert result.plain == (label == "2 combined")


def test_a_label_that_says_it_is_kept() -> None:
    routed = combined(both=True, settings=ADAPTIVE)
    about = msgspec.structs.replace(routed.manifest.deployment, label="2 combined adaptive")

    (result,) = evaluate([replace(routed, manifest=msgspec.structs.replace(routed.manifest, deployment=about))])

    assert result.label == "2 combined adaptive"


def test_it_is_not_pooled_with_plain_engines_and_plain_ones_stay_the_baseline() -> None:
    (found,) = grouped(evaluate([combined(both=True, whys=("plain",), seed=1), combined(both=False)]))

    assert [result.name for result in found.results] == ["2 combined", "2 combined adaptive"]


def test_other_objectives_are_another_deployment() -> None:
    wider = combined(both=True, settings={**ADAPTIVE, "TTFT_SLO_MS": "500"}, seed=1)

    (found,) = grouped(evaluate([combined(both=True, settings=ADAPTIVE), wider]))

    assert len(found.results) == 2


def test_along_rates_it_is_compared_with_plain_engines() -> None:
    measured = [
        combined(both=both, settings=ADAPTIVE if both else None, rate=rate) for both in (True, False) for rate in (1, 2)
    ]

    (sweep,) = sweeps(evaluate(measured))

    assert [(one.name, other.name) for one, other in pairs(sweep)] == [("2 combined", "2 combined adaptive")]


def test_the_report_says_how_the_proxy_was_set() -> None:
    (found,) = grouped(evaluate([combined(both=True, settings=ADAPTIVE)]))

    (row,) = [row for row in setup(found).rows if row[0].text == "Proxy"]
    assert row[1].text == "ROUTING adaptive, TTFT_SLO_MS 300"


def test_its_own_engines_may_hand_over_and_others_may_not() -> None:
    routed = combined(both=True)
    rows = routed.requests.rows.assign(prefill_instance=["combined-0", "combined-1", "combined-2", "combined-0"] * 10)

    found = strangers(replace(routed, requests=replace(routed.requests, rows=rows)))

    assert strangers(routed) is None
    assert found is not None
    assert dict(found.requests) == {"combined-2": 10}


@pytest.mark.parametrize(("written", "known"), [((400.0, 800.0), True), ((300.0, 600.0), False)])
def test_first_tokens_that_such_an_engine_hands_over_are_in_its_counter(
    written: tuple[float, float], known: bool
) -> None:
    # 400 requests of 3 tokens; combined-0 wrote the first of each, unless a stranger wrote a quarter of all
    routed = combined(both=True, requests=400)
    counted = tuple(
        EngineTokens(t=t, name=f"combined-{number}", role=Role.COMBINED, output=output * (t > 0))
        for t in (-1.0, 25.0)
        for number, output in enumerate(written)
    )
    boards = {number: (Role.COMBINED, constant(300.0)) for number in range(2)}
    header, _ = power_log(boards)

    assert (tokens_apart(replace(routed, engines=counted, gpu=header)) is None) == known
