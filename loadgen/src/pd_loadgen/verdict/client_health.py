"""Whether the client kept up. A load generator that was late has measured itself, so its run is invalid whatever its numbers.

CPU load is no evidence: at half a core a client may already read chunks 10 ms late. So lateness itself is measured: of every
send, and of every read against the kernel's stamp of what was read. A late read is not a wrong stamp if the stamp is the kernel's,
unless chunks that came one after the other were found in one read and so share a stamp, the last one's: then it counts. How late such
a read was for the first of them nobody knows, so then, and where the kernel does not stamp, a probe tells that looks every few
milliseconds how late the loop is.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from pd_contracts.latency import percentile
from pd_contracts.records import ClientHealth
from pd_loadgen.verdict import lag_histogram

PERCENTILES: Final = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
REMEDY: Final = "spread the load over processes (--processes), give the load generator its own cores (taskset, another machine), lower the rate, or accept more with --lag-limit-ms"
KERNEL: Final = "kernel"
PROCESS: Final = "process"
# A smaller share than this does not change a p99.
MOST_MERGED: Final = 0.01


def verdict(
    *,
    dispatch: Sequence[float],
    receive: Mapping[int, int],
    looked: Mapping[int, int],
    merged: float,
    stamps: str,
    cpu_fraction: float | None,
    limit_ms: float,
) -> ClientHealth:
    """Judge a run; without any lag (nothing could be sent) the client counts as in time.

    Args:
        dispatch: how late each request was sent, in seconds.
        receive: how late the client read what had arrived, by the kernel's stamps, counted (`lag_histogram`).
        looked: how late the probe found the loop, counted.
        merged: share of the chunks that were found in one read with others.
        stamps: who took the time stamps, KERNEL or PROCESS.
        cpu_fraction: CPU seconds per second per process.
        limit_ms: the most that a p99 may be.
    """
    sent = _milliseconds({name: percentile(dispatch, q) for name, q in PERCENTILES.items()})
    found = _receive(receive, looked, merged, stamps)
    read = _milliseconds({name: lag_histogram.percentile(found, q) for name, q in PERCENTILES.items()})
    late = []
    if sent.get("p99", 0.0) > limit_ms:
        late.append(f"sent requests {sent['p99']:.1f} ms late")
    if read.get("p99", 0.0) > limit_ms and (stamps != KERNEL or merged > MOST_MERGED):
        late.append(f"looked at sockets {read['p99']:.1f} ms late")
    return ClientHealth(
        valid=not late,
        dispatch_lag_ms=sent,
        receive_lag_ms=read,
        cpu_fraction=cpu_fraction,
        limit_ms=limit_ms,
        stamps=stamps,
        remedy=f"the client {' and '.join(late)} (p99; limit {limit_ms:g} ms): {REMEDY}" if late else "",
    )


def _receive(receive: Mapping[int, int], looked: Mapping[int, int], merged: float, stamps: str) -> Mapping[int, int]:
    """The lags that say how late reads were. If two histograms each show a part of it, the worse one."""
    if stamps != KERNEL:
        return looked
    if merged <= MOST_MERGED:
        return receive
    return max(receive, looked, key=lambda counts: lag_histogram.percentile(counts, 99) or 0.0)


def _milliseconds(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: round(value * 1e3, 3) for name, value in values.items() if value is not None}
