"""One load divided among processes: the messages between them, and how their parts are joined into one run. No I/O.

The master knows the schedule, writes the run folder and decides when to begin. Each worker makes the same schedule from the same
options and sends every n-th request of it. Times in messages and records are the master's monotonic clock.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from pd_loadgen.verdict import lag_histogram
from pd_loadgen.verdict.client_health import KERNEL, PROCESS
from pd_loadgen.workload.options import Options

# Names of the messages, as Locust carries them; master to workers, then workers to master.
CLOCK, JOB, START, STOP = "pd-clock", "pd-job", "pd-start", "pd-stop"
READY, RECORDS, REPORT, FAILED = "pd-ready", "pd-records", "pd-report", "pd-failed"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's part in a run. Keys are not in it: each worker reads its own."""

    run_id: str
    options: Options
    model: str
    index: int = 0
    count: int = 1


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How far a worker is, in numbers of the window so far.

    Attributes:
        started, ended, failed: requests.
        late: requests that were sent later than the limit allows a p99.
        reads, late_reads: reads of sockets that the kernel stamped, and those so late.
        looks, late_looks: the probe's looks at the loop, and those so late.
        chunks, merged: as in `Report`.
        kernel: the stamps are the kernel's.
    """

    started: int = 0
    ended: int = 0
    failed: int = 0
    late: int = 0
    reads: int = 0
    late_reads: int = 0
    looks: int = 0
    late_looks: int = 0
    chunks: int = 0
    merged: int = 0
    kernel: bool = True


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a part went.

    Attributes:
        complete: all of it was sent and had ended.
        last_end: when its last request ended; None if it had none.
        dispatch, receive, looked, stamps: as `health.verdict` takes them.
        chunks, merged: token chunks in all, and those that were found in one read with others.
        cpu_s: CPU seconds spent while the window was open.
        seconds: how long that was.
        notes: what a reader of the run should know.
    """

    complete: bool
    last_end: float | None = None
    dispatch: list[float] = []
    receive: dict[int, int] = {}
    looked: dict[int, int] = {}
    stamps: str = PROCESS
    chunks: int = 0
    merged: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0
    notes: list[str] = []


class ClockSample(msgspec.Struct, frozen=True):
    """One question about a worker's clock: asked and answered on the master's clock, read on the worker's in between."""

    asked: float
    read: float
    answered: float


def offset(samples: Sequence[ClockSample]) -> tuple[float, float]:
    """The worker's clock minus the master's, and how wrong that may be: half of the quickest round trip."""
    best = min(samples, key=lambda sample: sample.answered - sample.asked)
    return best.read - (best.asked + best.answered) / 2, (best.answered - best.asked) / 2


def places(at_most: int, index: int, count: int) -> int:
    """A worker's part of the requests in flight at a time; 0 stays "no limit"."""
    return at_most // count + (index < at_most % count)


def added(tallies: Iterable[Tally]) -> Tally:
    every = list(tallies)
    counts = {name: sum(getattr(one, name) for one in every) for name in Tally.__struct_fields__ if name != "kernel"}
    return Tally(**counts, kernel=all(one.kernel for one in every))


def cpu_fraction(reports: Sequence[Report]) -> float | None:
    """CPU seconds per second per process; None if nothing was measured."""
    seconds = sum(report.seconds for report in reports)
    return round(sum(report.cpu_s for report in reports) / seconds, 4) if seconds else None


def joined(reports: Sequence[Report]) -> Report:
    """All parts as one. The lags are pooled, so a late request weighs the same whichever worker sent it."""
    ends = [report.last_end for report in reports if report.last_end is not None]
    return Report(
        complete=all(report.complete for report in reports),
        last_end=max(ends, default=None),
        dispatch=[lag for report in reports for lag in report.dispatch],
        receive=lag_histogram.pooled(report.receive for report in reports),
        looked=lag_histogram.pooled(report.looked for report in reports),
        stamps=KERNEL if all(report.stamps == KERNEL for report in reports) else PROCESS,
        chunks=sum(report.chunks for report in reports),
        merged=sum(report.merged for report in reports),
        cpu_s=sum(report.cpu_s for report in reports),
        seconds=sum(report.seconds for report in reports),
        notes=[note for report in reports for note in report.notes],
    )


LOST: Final = "a worker process was lost: its requests of the last second and all later ones are missing"
