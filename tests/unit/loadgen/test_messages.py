"""A load that is divided among processes: each one's part, and the combination of their results."""

import pytest

from pd_contracts.records import RequestRecord
from pd_loadgen.client.stream import shifted
from pd_loadgen.live.processes import messages
from pd_loadgen.live.processes.messages import ClockSample, Report
from pd_loadgen.workload.options import Options


@pytest.mark.parametrize(("at_most", "count"), [(0, 3), (3, 3), (8, 3), (10_000, 16)])
def test_places_are_shared_out_without_losing_any(at_most: int, count: int) -> None:
    parts = [messages.places(at_most, index, count) for index in range(count)]

    assert sum(parts) == at_most
    assert max(parts) - min(parts) <= 1


def test_a_clock_is_known_best_from_the_quickest_answer() -> None:
    # the worker's clock is 100 s ahead; the slow answer had a long way back
    samples = [ClockSample(1.0, 101.01, 1.1), ClockSample(2.0, 102.001, 2.002)]

    offset, error = messages.offset(samples)

    assert offset == pytest.approx(100, abs=1e-9)
    assert error == pytest.approx(0.001)


def test_one_part_that_was_late_or_stopped_is_not_hidden_by_the_others() -> None:
    whole = messages.joined(
        [
            Report(
                complete=True,
                last_end=5.0,
                dispatch=[0.1],
                receive={5: 1, 7: 2},
                stamps="kernel",
                chunks=8,
                merged=1,
                cpu_s=1,
                seconds=4,
                notes=["a"],
            ),
            Report(complete=False, dispatch=[0.3], receive={7: 1}, chunks=2, merged=2, cpu_s=3, seconds=4),
        ]
    )

    assert not whole.complete
    assert (whole.last_end, whole.dispatch, whole.receive, whole.notes) == (5.0, [0.1, 0.3], {5: 1, 7: 3}, ["a"])
    assert (whole.chunks, whole.merged, whole.stamps) == (10, 3, "process")


def test_cpu_is_per_process_and_unknown_if_nothing_ran() -> None:
    assert (
        messages.cpu_fraction([Report(complete=True, cpu_s=1, seconds=4), Report(complete=True, cpu_s=3, seconds=4)])
        == 0.5
    )
    assert messages.cpu_fraction([]) is None


def test_a_record_on_another_clock_keeps_its_differences() -> None:
    record = RequestRecord(
        index=0, id="r", scheduled=1.0, sent=1.5, headers=None, first_byte=2.0, chunks=[(2.0, 1), (3.0, 2)], end=4.0
    )

    moved = shifted(record, 10.0)

    assert (moved.scheduled, moved.sent, moved.headers, moved.first_byte, moved.end) == (11.0, 11.5, None, 12.0, 14.0)
    assert moved.chunks == [(12.0, 1), (13.0, 2)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mode": "batch"}, "only one process can keep"),
        ({"mode": "phase-split", "requests": 2}, "only one process can keep"),
        ({"max_concurrency": 2}, "is less than the"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Options(processes=4, **given)  # type: ignore[arg-type]
