"""The metrics' definitions, once: the load generator's summary and the report use the same functions.

`FORMULAS` is printed beside the numbers. All durations are seconds; None where a request cannot have the value.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from pd_contracts.records import RequestRecord
from pd_contracts.sentences import SentenceError

PERCENTILES: Final = (50, 90, 95, 99)
LIMITED: Final = ("ttft", "tpot", "e2el")  # the metrics that can have limits

FORMULAS: Final[dict[str, str]] = {
    "TTFT": "first token chunk − scheduled send",
    "TTFT (from send)": "first token chunk − actual send",
    "TPOT": "(last token − first token) / (output tokens − those of the first chunk), tokens from the server's usage",
    "ITL": "gap between consecutive token chunks, pooled over requests",
    "Longest gap": "the longest ITL of each request",
    "E2EL": "last token chunk − scheduled send",
    "Goodput": "requests per second that meet every given limit; failures and unknown values never meet a limit",
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
    """Time per output token after the first chunk's; None if no token came after them, or without usage.

    The first chunk may hold several tokens (speculative decoding, a proxy that bundles): they took no time after it.
    """
    if record.output_tokens is None or len(record.chunks) < 2:
        return None
    later = record.output_tokens - record.chunks[0][1]
    return (record.chunks[-1][0] - record.chunks[0][0]) / later if later > 0 else None


def itl(record: RequestRecord) -> list[float]:
    """Inter-token latencies: gaps between token chunks (n chunks give n − 1)."""
    return [later[0] - earlier[0] for earlier, later in zip(record.chunks, record.chunks[1:], strict=False)]


def meets(record: RequestRecord, limits_ms: Mapping[str, float]) -> bool:
    """True if a successful request meets every limit; keys are ttft, tpot and e2el, in milliseconds.

    What is unknown meets no limit. A request of one output token has no TPOT to be known, and meets any limit on it.
    """
    if not succeeded(record):
        return False
    values = {"ttft": ttft(record), "tpot": tpot(record), "e2el": e2el(record)}
    known = {key: math.nan if value is None else value for key, value in values.items()}
    outputs = math.nan if record.output_tokens is None else record.output_tokens
    return all(within(key, value, outputs, limits_ms[key]) for key, value in known.items() if key in limits_ms)


def within(metric: str, seconds: Any, output_tokens: Any, limit_ms: float) -> Any:
    """Whether a latency is known to keep its limit; of arrays, for each. Unknown is NaN and keeps none, but for the TPOT of a single token."""
    kept = seconds * 1e3 <= limit_ms
    return kept | (output_tokens == 1) if metric == "tpot" else kept


class LimitError(SentenceError, ValueError):
    """A limit cannot be read."""


def parse_goodput(items: Iterable[str]) -> dict[str, float]:
    """Read limits as `vllm bench serve --goodput` takes them: "ttft:200 tpot:50 e2el:5000"; commas divide them, too.

    Raises:
        LimitError: about the item that is wrong.
    """
    limits: dict[str, float] = {}
    for item in (part for text in items for part in text.replace(",", " ").split()):
        key, _, value = item.partition(":")
        if key not in LIMITED:
            raise LimitError(
                "goodput limit {item}: write ttft, tpot or e2el, a colon and milliseconds, as in ttft:500",
                item=repr(item),
            )
        if key in limits:
            raise LimitError("goodput limit {item}: {metric} has a limit already", item=repr(item), metric=key)
        try:
            limits[key] = float(value)
        except ValueError:
            raise LimitError(
                "goodput limit {item}: expected a number of milliseconds after the colon", item=repr(item)
            ) from None
        if not 0 < limits[key] < float("inf"):
            raise LimitError("goodput limit {item}: must be more than 0 ms", item=repr(item))
    return limits


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0 to 100) with linear interpolation, as numpy's default; None without values."""
    return ranked(sorted(values).__getitem__, len(values), q)


def ranked(at: Callable[[int], float], count: int, q: float) -> float | None:
    """The same of `count` values of which `at` gives the n-th smallest, from 0."""
    if not count:
        return None
    position = (count - 1) * q / 100
    low = int(position)
    first, second = at(low), at(min(low + 1, count - 1))
    return first + (second - first) * (position - low)
