"""A report of many loads: which get a chapter, which deployments are compared, and doubts that appear once."""

import re
from dataclasses import replace
from pathlib import Path

import msgspec
from support.analysis import deployment, failed, manifest, request, run, workload

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.many_loads import overall
from pd_analysis.doubts.one_load import cases
from pd_analysis.numbers.evaluation import Group, evaluate, grouped
from pd_analysis.records.run import Loaded, Run
from pd_analysis.report.chapters import with_chapter
from pd_analysis.report.writer import write_report
from pd_analysis.tables.comparison import overview
from pd_contracts.names import Topology
from pd_contracts.records import ClientHealth

RATES = (2.0, 4.0, 6.0, 8.0)


def at(topology: Topology, rate: float, *, gpus: int = 2, ttft: float = 0.1, requests: int = 10) -> Run:
    served = msgspec.structs.replace(deployment(topology), gpus=gpus, label=f"{gpus} {topology}")
    load = workload(rate=rate, input_tokens=100, goodput={"ttft": 500.0})
    about = manifest(topology, deployment=served, workload=load, run_id=f"{topology}{rate}{gpus}")
    return run([request(index, index / rate, ttft=ttft) for index in range(requests)], about)


def groups_of(*runs: Run) -> list[Group]:
    return grouped(evaluate(runs))


def both(rate: float, **changes: float) -> list[Run]:
    return [at(topology, rate, **changes) for topology in (Topology.COMBINED, Topology.DISAGG)]  # type: ignore[arg-type]


def test_deployments_of_two_and_of_four_gpus_are_compared_among_themselves() -> None:
    found = groups_of(*both(4.0), *both(4.0, gpus=4))

    assert [[result.label for result in group.results] for group in found] == [
        ["2 combined", "2 disagg"],
        ["4 combined", "4 disagg"],
    ]
    assert found[1].workload.endswith(", on 4 GPUs")


def test_a_deployment_that_would_be_left_alone_is_compared_with_another_number_of_gpus() -> None:
    [found] = groups_of(at(Topology.COMBINED, 4.0, gpus=1), at(Topology.DISAGG, 4.0, gpus=2))

    assert len(found.results) == 2


def test_few_loads_all_have_a_chapter() -> None:
    found = groups_of(*(run for rate in RATES for run in both(rate)))

    assert with_chapter(found) == found


def test_of_many_loads_the_highest_that_plain_serving_keeps_is_told() -> None:
    kept = [run for rate in (1.0, 2.0, 3.0, 4.0, 5.0) for run in both(rate)]
    missed = [run for rate in (6.0, 7.0, 8.0) for run in both(rate, ttft=0.9)]

    [chosen] = with_chapter(groups_of(*missed, *kept))

    assert chosen.baseline.run.manifest.workload.rate == 5.0


def test_where_plain_serving_keeps_no_limit_the_lowest_load_is_told() -> None:
    [chosen] = with_chapter(groups_of(*(run for rate in range(1, 9) for run in both(float(rate), ttft=0.9))))

    assert chosen.baseline.run.manifest.workload.rate == 1.0


def doubts_of(groups: list[Group]) -> list[Doubt]:
    return overall(groups, [case for group in groups for case in cases(group)])


def test_a_doubt_about_every_run_is_said_once() -> None:
    found = doubts_of(groups_of(*(run for rate in RATES for run in both(rate))))

    few = [doubt for doubt in found if doubt.sentence.startswith("A p99 of fewer than 100 requests")]
    assert [doubt.places for doubt in few] == ["every run"]
    assert found == sorted(found, key=lambda doubt: doubt.level is not Level.STOP)


def test_a_doubt_names_the_rates_at_which_it_holds() -> None:
    fine = [run for rate in (2.0, 4.0) for run in both(rate, requests=120)]
    short = [run for rate in (6.0, 8.0) for run in both(rate)]
    [doubt] = [each for each in doubts_of(groups_of(*fine, *short)) if each.sentence.startswith("A p99 of fewer")]

    assert "2 combined at 3 and 4 req/s per GPU, 2 disagg at 3 and 4 req/s per GPU" in doubt.places


def test_a_doubt_about_one_of_many_loads_names_it() -> None:
    one = ClientHealth(valid=False, dispatch_lag_ms={"p99": 900.0}, receive_lag_ms={}, limit_ms=5.0)
    late = at(Topology.COMBINED, 2.0)
    late = replace(late, manifest=msgspec.structs.replace(late.manifest, client=one))
    found = doubts_of(groups_of(late, at(Topology.DISAGG, 2.0), *both(4.0), *both(6.0)))

    assert [doubt.places for doubt in found if "INVALID" in doubt.sentence] == [
        "100 → 3 tokens: 2 combined at 1 req/s per GPU"
    ]


def test_deployments_that_never_had_the_same_load_are_said_not_to_be_compared() -> None:
    apart = groups_of(at(Topology.COMBINED, 2.0), at(Topology.DISAGG, 4.0))
    (doubt,) = [each for each in doubts_of(apart) if "No two deployments" in each.sentence]

    assert "2 combined: 2 requests/s" in doubt.sentence
    assert "2 disagg: 4 requests/s" in doubt.sentence
    for compared in (both(2.0), [at(Topology.COMBINED, rate) for rate in RATES]):
        assert not any("No two deployments" in each.sentence for each in doubts_of(groups_of(*compared)))


def test_a_report_of_many_loads_with_one_chapter_tells_the_doubts_of_all(tmp_path: Path) -> None:
    runs = [at(Topology.COMBINED, rate) for rate in RATES]
    failing = run([failed(0, 0.0), failed(1, 0.5)], runs[-1].manifest)
    page = write_report(Loaded([*runs[:-1], failing], []), tmp_path).html.read_text(encoding="utf-8")

    assert "all requests failed (2 status)" in page
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert not [target for target in targets if f'id="{target}"' not in page]


def test_the_overview_is_in_the_order_of_gpus_and_rates() -> None:
    runs = [*both(4.0, gpus=4), *both(8.0), *both(4.0)]
    table = overview(groups_of(*runs))
    rows = [(row[1].text, row[2].text) for row in table.rows]

    assert rows == [
        ("2 combined", "4 req/s"),
        ("2 combined", "8 req/s"),
        ("2 disagg", "4 req/s"),
        ("2 disagg", "8 req/s"),
        ("4 combined", "4 req/s"),
        ("4 disagg", "4 req/s"),
    ]
    assert table.caption == "Random data, poisson arrivals, /v1/completions."
