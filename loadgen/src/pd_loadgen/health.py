"""Did the client keep up? A load generator that was late measured itself, so such a run is invalid whatever its numbers.

CPU load is no evidence: at half a core a client may already stamp chunks 10 ms late. So lateness itself is measured: of every
send, and, with a probe every few milliseconds, of the loop that stamps what arrives.
"""

from collections.abc import Sequence
from typing import Final

from pd_contracts.latency import percentile
from pd_contracts.records import ClientHealth

PERCENTILES: Final = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
REMEDY: Final = "give the load generator cores of its own (taskset, another machine), lower the rate, or accept more with --lag-limit-ms"


def verdict(
    *, dispatch: Sequence[float], receive: Sequence[float], cpu_fraction: float | None, limit_ms: float
) -> ClientHealth:
    """Judge a run by its lags in seconds; without any lag (nothing could be sent) there is nothing to hold against the client."""
    lags = {"sent requests": _milliseconds(dispatch), "looked at sockets": _milliseconds(receive)}
    late = [f"{what} {lag['p99']:.1f} ms late" for what, lag in lags.items() if lag.get("p99", 0.0) > limit_ms]
    return ClientHealth(
        valid=not late,
        dispatch_lag_ms=lags["sent requests"],
        receive_lag_ms=lags["looked at sockets"],
        cpu_fraction=cpu_fraction,
        limit_ms=limit_ms,
        remedy=f"the client {' and '.join(late)} (p99; limit {limit_ms:g} ms): {REMEDY}" if late else "",
    )


def _milliseconds(lags: Sequence[float]) -> dict[str, float]:
    values = {name: percentile(lags, q) for name, q in PERCENTILES.items()}
    return {name: round(value * 1e3, 3) for name, value in values.items() if value is not None}
