"""Whether a running engine is admitted, and whether it makes progress. Pure: observations and what was kept in, verdict out.

vLLM answers `/health` while a step waits for KV that never comes, so answering is no sign of life. Two things are: what vLLM
counts (an engine with running requests none of whose counters moves computes nothing), and the proxy's verdict on the streams
that it forwards. The second is needed because vLLM publishes its counters after a step: one that hangs in the first step after an
idle time still reports that nothing runs.
"""

from typing import Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

# What the proxy says of an engine that it has not heard of.
UNKNOWN: Final = "unknown"
RUNNING: Final = "vllm:num_requests_running"
# A prompt in chunks moves none of the token counters before its first token, but it fills the cache.
WORK: Final = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:kv_cache_usage_perc",
)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One look at an engine.

    Attributes:
        boot: identity of the process that was looked at.
        running: requests in its batch, as it says itself.
        work: the values of `WORK`, each summed over its labels; empty if its page has none.
        suspect: the proxy says that its streams have stalled.
    """

    boot: str
    running: float = 0.0
    work: tuple[float, ...] = ()
    suspect: bool = False


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept between two looks; times are monotonic seconds. `suspect_since` is None for an engine that is not suspect."""

    boot: str
    work: tuple[float, ...]
    moved_at: float
    suspect_since: float | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxy says of an engine: the body of its `GET /admitted`."""

    admitted: bool
    state: str = ""
    reason: str = ""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's last word on one process."""

    boot: str
    admitted: bool
    reason: str = ""


def read_metrics(text: str, boot: str, *, suspect: bool = False) -> Seen:
    """Make a look of Prometheus' text format."""
    totals = _totals(text)
    running = totals.get(RUNNING)
    work = [totals.get(name) for name in WORK]
    if running is None or all(value is None for value in work):
        return Seen(boot=boot, suspect=suspect)  # an engine that counts otherwise is not called dead for it
    return Seen(boot=boot, running=running, work=tuple(value or 0.0 for value in work), suspect=suspect)


def watch(kept: Watch | None, seen: Seen, now: float) -> Watch:
    """What to keep after this look."""
    same = kept is not None and kept.boot == seen.boot
    still = same and seen.running > 0 and bool(seen.work) and kept is not None and seen.work == kept.work
    since = (kept.suspect_since if same and kept is not None else None) if seen.suspect else None
    return Watch(
        boot=seen.boot,
        work=seen.work,
        moved_at=kept.moved_at if still and kept is not None else now,
        suspect_since=now if seen.suspect and since is None else since,
    )


def complaint(watched: Watch, now: float, limit_s: float) -> str:
    """Why the engine is not alive; empty if it is."""
    if limit_s == 0:
        return ""
    if now - watched.moved_at >= limit_s:
        return f"requests run, and nothing was computed for {now - watched.moved_at:.0f} s"
    if watched.suspect_since is not None and now - watched.suspect_since >= limit_s:
        return f"the proxy reports that its streams have stalled for {now - watched.suspect_since:.0f} s"
    return ""


def standing(kept: Standing | None, answer: Answer | None, boot: str) -> Standing:
    """The proxy's last word: without an answer, what it said of this process before stands.

    A proxy that is being replaced must not make every engine unready at once: disruption budgets would let all of them go. The new
    one answers before it has heard of them; one that knows an engine never calls it unknown while that runs.
    """
    if answer is not None and not (answer.state == UNKNOWN and kept is not None and kept.boot == boot):
        reason = "" if answer.admitted else f"{answer.state}: {answer.reason}" if answer.reason else answer.state
        return Standing(boot=boot, admitted=answer.admitted, reason=reason)
    if kept is not None and kept.boot == boot:
        return kept
    return Standing(boot=boot, admitted=False, reason="the proxy has not answered yet")


def _totals(text: str) -> dict[str, float]:
    """The values of the series that are watched, each summed over its labels; pages have thousands of others."""
    wanted = [line for line in text.splitlines() if line.startswith((RUNNING, *WORK))]
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join(wanted)):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals
