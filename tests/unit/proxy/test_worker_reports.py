"""Adding up what workers report, also those that have ended."""

from collections.abc import Iterable

import msgspec
import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from pd_contracts.timing import Stages
from pd_proxy.metrics import Metrics, Numbers
from pd_proxy.processes.channel import EngineReport, Report
from pd_proxy.processes.worker_pool import MAX_PAUSE_S, pause_s
from pd_proxy.processes.worker_reports import WorkerReports
from pd_proxy.upstream.flights import Evidence

ENGINE = "10.0.0.1:8000"


def worker(requests: int, failures: int = 0) -> Report:
    """The report of a worker that has served so many requests."""
    metrics = Metrics(tuple, lambda _: 0)
    for number in range(requests):
        metrics.started()
        metrics.ended(
            "/v1/completions", 502 if number < failures else 200, "stalled" if number < failures else "", fault=True
        )
        metrics.staged(
            Stages(queue=1, prefill=2, kv_and_first_decode=3, decode=4, prefill_instance="", decode_instance="")
        )
    engine = EngineReport(
        address=ENGINE, requests=requests, failures=failures, last_progress=50.0, waits=[(10.0, False)]
    )
    numbers = Numbers(in_flight=1, total=requests, failures=failures, retries=2, drains=1)
    return Report(at=60.0, numbers=numbers, engines=[engine], samples=metrics.samples())


def series(reports: WorkerReports, name: str) -> list[str]:
    """Lines of a page of metrics on which all is summed."""

    class Page(Metrics):
        def collect(self) -> Iterable[Metric]:
            return reports.merged(super().collect())

    lines = generate_latest(Page(tuple, lambda _: 0)).decode().splitlines()
    return [line.removeprefix(name) for line in lines if line.startswith(name)]


def test_samples_of_all_workers_add_up() -> None:
    reports = WorkerReports()
    reports.take(1, worker(3, failures=1))
    reports.take(2, worker(4))
    assert sorted(series(reports, "pd_proxy_requests_total")) == [
        '{endpoint="/v1/completions",status="200"} 6.0',
        '{endpoint="/v1/completions",status="502"} 1.0',
    ]
    assert series(reports, "pd_proxy_failures_total") == ['{cause="stalled"} 1.0']
    assert series(reports, 'pd_proxy_stage_seconds_count{stage="decode"}') == [" 7.0"]
    assert series(reports, 'pd_proxy_stage_seconds_bucket{le="+Inf",stage="decode"}') == [" 7.0"]
    assert series(reports, "pd_proxy_requests_in_flight") == [" 0.0"], "a gauge is no sum"


def test_a_later_report_takes_the_place_of_an_earlier_one() -> None:
    reports = WorkerReports()
    reports.take(1, worker(3))
    reports.take(1, worker(5))
    assert series(reports, "pd_proxy_requests_total") == ['{endpoint="/v1/completions",status="200"} 5.0']


def test_every_count_of_the_workers_adds_up_but_those_of_requests_which_are_shared() -> None:
    reports = WorkerReports()
    names = [field.name for field in msgspec.structs.fields(Numbers)]
    for number in (1, 2):
        numbers = Numbers(**dict.fromkeys(names, number))
        reports.take(number, Report(at=60.0, numbers=numbers, engines=[], samples=[]))
    assert reports.numbers() == Numbers(**dict.fromkeys(names, 3) | {"in_flight": 0, "total": 0})


def test_what_an_ended_worker_counted_stays_when_its_successor_begins_anew() -> None:
    reports = WorkerReports()
    reports.take(1, worker(5, failures=1))
    reports.ended(1, requests=7, in_flight=2)
    reports.take(1, worker(1))
    assert reports.numbers() == Numbers(total=7, failures=3, drains=2, retries=4)
    assert reports.counts(ENGINE) == (6, 1)
    assert series(reports, 'pd_proxy_stage_seconds_count{stage="queue"}') == [" 6.0"]
    reports.forget(ENGINE)
    assert reports.counts(ENGINE) == (1, 0)


def test_a_worker_that_never_reported_leaves_what_the_shared_counters_say() -> None:
    reports = WorkerReports()
    reports.ended(1, requests=2, in_flight=1)
    assert reports.numbers() == Numbers(total=2, failures=1)


def test_evidence_says_as_of_when_it_is() -> None:
    reports = WorkerReports()
    reports.take(1, worker(1))
    assert reports.evidence(ENGINE) == [(60.0, Evidence([(10.0, False)], 50.0))]
    assert reports.evidence("elsewhere") == []


@pytest.mark.parametrize(("failures", "expected"), [(0, 0.0), (1, 0.2), (3, 0.8), (40, MAX_PAUSE_S)])
def test_a_worker_that_keeps_failing_is_replaced_after_longer_pauses(failures: int, expected: float) -> None:
    assert pause_s(failures) == expected
