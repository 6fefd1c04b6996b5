"""The metrics' definitions, once: the load generator's summary and the report use the same functions.

`FORMULAS` is printed beside the numbers. All durations are seconds; None where a request cannot have the value.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from pd_contracts.records import RequestRecord

PERCENTILES: Final = (50, 90, 95, 99)

FORMULAS: Final[dict[str, str]] = {
    "TTFT": "first token chunk − scheduled send",
    "TTFT (from send)": "first token chunk − actual send",
    "TPOT": "(last token − first token) / (output tokens − 1), tokens from the server's usage",
    "ITL": "gap between consecutive token chunks, pooled over requests",
    "Longest gap": "the longest ITL of each request",
    "E2EL": "last token chunk − scheduled send",
    "Goodput": "requests that meet every given limit, a second; failures never meet one",
    "Throughput": "tokens of successful requests / measured window",
}


def succeeded(record: RequestRecord) -> bool:
    """A request counts as served if it has no error and wrote at least one token."""
    return record.error is None and bool(record.chunks)


def ttft(record: RequestRecord) -> float | None:
    """Time to first token, from the scheduled send, so that a late client cannot hide queueing."""
    return record.chunks[0][0] - record.scheduled if record.chunks else None


def ttft_from_send(record: RequestRecord) -> float | None:
    """Time to first token, from the actual send."""
    return record.chunks[0][0] - record.sent if record.chunks and record.sent is not None else None


def e2el(record: RequestRecord) -> float | None:
    """End-to-end latency, from the scheduled send."""
    return record.chunks[-1][0] - record.scheduled if record.chunks else None


def tpot(record: RequestRecord) -> float | None:
    """Time per output token after the first; None with one token, or without usage."""
    if record.output_tokens is None or record.output_tokens < 2 or len(record.chunks) < 2:
        return None
    return (record.chunks[-1][0] - record.chunks[0][0]) / (record.output_tokens - 1)


def itl(record: RequestRecord) -> list[float]:
    """Inter-token latencies: gaps between token chunks (n chunks give n − 1)."""
    return [later[0] - earlier[0] for earlier, later in zip(record.chunks, record.chunks[1:], strict=False)]


def meets(record: RequestRecord, limits_ms: Mapping[str, float]) -> bool:
    """True if a successful request meets every limit; keys are ttft, tpot and e2el, in milliseconds.

    A request with one output token has no TPOT and meets any limit on it.
    """
    if not succeeded(record):
        return False
    values = {"ttft": ttft(record), "tpot": tpot(record), "e2el": e2el(record)}
    return not any(
        value is not None and above(value, limits_ms[key]) for key, value in values.items() if key in limits_ms
    )


def above(seconds: Any, limit_ms: float) -> Any:
    """Whether a latency misses its limit; of an array, for each. A latency that a request cannot have (NaN) misses none."""
    return seconds * 1e3 > limit_ms


def parse_goodput(items: Iterable[str]) -> dict[str, float]:
    """Read limits as `vllm bench serve --goodput` takes them: "ttft:200 tpot:50 e2el:5000".

    Raises:
        ValueError: with a sentence about the item that is wrong.
    """
    limits: dict[str, float] = {}
    for item in (part for text in items for part in text.split()):
        key, _, value = item.partition(":")
        if key not in {"ttft", "tpot", "e2el"}:
            msg = f"goodput limit {item!r}: the metric must be ttft, tpot or e2el"
            raise ValueError(msg)
        try:
            limits[key] = float(value)
        except ValueError:
            msg = f"goodput limit {item!r}: expected a number of milliseconds after the colon"
            raise ValueError(msg) from None
        if not 0 < limits[key] < float("inf"):
            msg = f"goodput limit {item!r}: must be more than 0 ms"
            raise ValueError(msg)
    return limits


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0 to 100) with linear interpolation, as numpy's default; None of nothing."""
    return ranked(sorted(values).__getitem__, len(values), q)


def ranked(at: Callable[[int], float], count: int, q: float) -> float | None:
    """The same of `count` values of which `at` gives the n-th smallest, from 0."""
    if not count:
        return None
    position = (count - 1) * q / 100
    low = int(position)
    first, second = at(low), at(min(low + 1, count - 1))
    return first + (second - first) * (position - low)
