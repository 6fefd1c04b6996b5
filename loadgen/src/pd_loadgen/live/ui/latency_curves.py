"""Latencies over time while a run goes on, for the web page; the numbers of the record are computed from the records. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pd_contracts import latency
from pd_contracts.records import RequestRecord
from pd_loadgen.verdict.lag_histogram import LagHistogram, percentile, pooled

METRICS: Final = ("TTFT", "TPOT", "ITL", "E2EL")
SHOWN: Final = (50, 90, 99)
# A curve on a screen needs no more points; a longer run gets wider bins.
MOST_BINS: Final = 120


@dataclass(slots=True)
class Bin:
    """Requests that ended in one span of time."""

    served: int = 0
    failed: int = 0
    good: int = 0
    tokens: int = 0
    values: dict[str, LagHistogram] = field(default_factory=lambda: {name: LagHistogram() for name in METRICS})

    def add(self, other: "Bin") -> None:
        self.served += other.served
        self.failed += other.failed
        self.good += other.good
        self.tokens += other.tokens
        for name, counted in self.values.items():
            counted.counts = pooled((counted.counts, other.values[name].counts))


class LatencyCurves:
    """Sums up one run."""

    def __init__(self, limits_ms: Mapping[str, float], width_s: float = 1.0) -> None:
        """Begin with bins of `width_s` seconds."""
        self.limits_ms, self.width_s = limits_ms, width_s
        self.bins: list[Bin] = []
        self._origin: float | None = None

    def add(self, record: RequestRecord) -> None:
        """Count one request of the window."""
        if self._origin is None:
            self._origin = record.scheduled
        one = self._bin(max(0.0, (record.end or record.scheduled) - self._origin))
        if not latency.succeeded(record):
            one.failed += 1
            return
        one.served += 1
        one.good += latency.meets(record, self.limits_ms)
        one.tokens += record.output_tokens or 0
        for name, value in (
            ("TTFT", latency.ttft(record)),
            ("TPOT", latency.tpot(record)),
            ("E2EL", latency.e2el(record)),
        ):
            if value is not None:
                one.values[name].add(value)
        for gap in latency.itl(record):
            one.values["ITL"].add(gap)

    def snapshot(self) -> dict[str, Any]:
        """All of it for the page; milliseconds, and None where nothing was measured."""
        whole = Bin()
        for one in self.bins:
            whole.add(one)
        seconds = len(self.bins) * self.width_s
        ended = whole.served + whole.failed
        return {
            "width_s": self.width_s,
            "bins": [_row(one) for one in self.bins],
            "totals": {name: _spread(whole.values[name]) for name in METRICS},
            "served": whole.served,
            "failed": whole.failed,
            "tokens_per_s": whole.tokens / seconds if seconds else None,
            "goodput": whole.good / seconds if seconds and self.limits_ms else None,
            "attainment": whole.good / ended if ended and self.limits_ms else None,
            "limits_ms": dict(self.limits_ms),
        }

    def _bin(self, after: float) -> Bin:
        while after >= MOST_BINS * self.width_s:
            self._widen()
        while len(self.bins) <= int(after / self.width_s):
            self.bins.append(Bin())
        return self.bins[int(after / self.width_s)]

    def _widen(self) -> None:
        for even, odd in zip(self.bins[::2], self.bins[1::2], strict=False):
            even.add(odd)
        self.bins, self.width_s = self.bins[::2], self.width_s * 2


def _row(one: Bin) -> dict[str, Any]:
    return {"served": one.served, "failed": one.failed, **{name: _spread(one.values[name]) for name in METRICS}}


def _spread(counted: LagHistogram) -> dict[str, float | None]:
    values = {f"p{q}": percentile(counted.counts, q) for q in SHOWN}
    return {name: None if value is None else round(value * 1e3, 2) for name, value in values.items()}
