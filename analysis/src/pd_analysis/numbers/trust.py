"""What makes a run unfit for a decision: an engine outside the deployment, other clients' load, or a late client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pandas as pd

from pd_analysis.energy.moments import clock_shift
from pd_analysis.records.run import Run
from pd_contracts.names import Role
from pd_contracts.records import ClientHealth, EngineInfo, EngineTokens

# Counters and usage should agree; a larger difference means that foreign engines answered, or that the engines served other clients.
TOKENS_APART: Final = 0.02
END_TOKENS: Final = 1.0  # tokens per request that usage may count and no chunk shows
# The proxy's own requests (a canary for a pair of engines) are a few tokens beside any load.
OWN_TOKENS: Final = 256.0


class Unfit(StrEnum):
    """Why no decision may be based on a run."""

    CLIENT = "client"
    STRANGER = "stranger"
    LOST_TOKENS = "lost_tokens"
    MORE_TOKENS = "more_tokens"
    USAGE = "usage"
    GPUS = "gpus"


@dataclass(frozen=True)
class Strangers:
    """Engines that answered and are not the deployment's.

    Attributes:
        requests: by name, how many requests of the measured window they answered.
        engines: how many the deployment has of that kind.
        answered: how many answered.
    """

    requests: Mapping[str, int]
    engines: int
    answered: int


def unfit(run: Run) -> frozenset[Unfit]:
    """Everything that makes the run unfit."""
    found = set()
    client = run.manifest.client
    if client is not None and late(client):
        found.add(Unfit.CLIENT)
    if strangers(run) is not None:
        found.add(Unfit.STRANGER)
    counted = tokens_apart(run)
    if counted is not None:
        found.add(Unfit.LOST_TOKENS if counted.engines < counted.requests else Unfit.MORE_TOKENS)
    if usage_apart(run) is not None:
        found.add(Unfit.USAGE)
    if boards_apart(run) is not None:
        found.add(Unfit.GPUS)
    return frozenset(found)


def late(client: ClientHealth) -> bool:
    """Whether the client did not keep up, by its own verdict or by the lags from which it is drawn."""
    p99 = [lags.get("p99", 0.0) for lags in (client.dispatch_lag_ms, client.receive_lag_ms)]
    return not client.valid or (client.limit_ms > 0 and max(p99) > client.limit_ms)


def usage_apart(run: Run) -> tuple[float, float] | None:
    """Output tokens by the server's usage, and what they should be: those of the chunks, or at most those that were asked for.

    None where they agree or one is unknown. A server may count an end-of-text token that it does not send.
    """
    told = run.requests.served
    told = told[told["output_tokens"].notna()]
    usage, slack = float(told["output_tokens"].sum()), len(told) * END_TOKENS
    asked = told[told["requested_output_tokens"].notna()]
    most, got = float(asked["requested_output_tokens"].sum()), float(asked["output_tokens"].sum())
    if got > most * (1 + TOKENS_APART) + len(asked) * END_TOKENS:
        return got, most
    sent = float(told["chunk_tokens"].sum())
    return (usage, sent) if abs(usage - sent) > TOKENS_APART * max(usage, sent) + slack else None


def boards_apart(run: Run) -> tuple[int, int] | None:
    """How many GPUs the deployment is said to have, and how many its engines name; None if they agree or one is unknown."""
    deployment = run.manifest.deployment
    engines = deployment.engines
    if deployment.gpus is None or not engines:
        return None
    if all(engine.gpu_uuids for engine in engines):
        named = len({uuid for engine in engines for uuid in engine.gpu_uuids})
        return None if deployment.gpus == named else (deployment.gpus, named)
    if not all(engine.gpus for engine in engines):
        return None
    # Engines may share a board, and boards of two hosts have equal numbers.
    least, most = (
        len({index for engine in engines for index in engine.gpus}),
        sum(len(engine.gpus) for engine in engines),
    )
    return None if least <= deployment.gpus <= most else (deployment.gpus, most)


def strangers(run: Run) -> Strangers | None:
    """Engines that answered beyond those of the deployment; None if there are none, or if the records do not name them.

    The proxy numbers engines in the order in which they join, and the deployment's document may number them differently, so another
    name alone proves nothing; more names than engines does. If the deployment's engines are unknown, its GPUs are the upper bound.
    """
    deployment = run.manifest.deployment
    engines = deployment.engines
    measured = run.requests.measured
    if not engines:
        return _more_than_gpus(measured["decode_instance"], deployment.gpus)
    for column, takes_part in (("decode_instance", _writes), ("prefill_instance", _hands_over)):
        own = [engine.name for engine in engines if takes_part(engine)]
        found = _answers(measured[column])
        if len(found) > len(own):
            return Strangers(_not_own(found, own), len(own), len(found))
    return None


def _writes(engine: EngineInfo) -> bool:
    return engine.role is not Role.PREFILL


def _hands_over(engine: EngineInfo) -> bool:
    """Combined engines have a connector if they do (KV_BOTH=on)."""
    return engine.role is Role.PREFILL or (engine.role is Role.COMBINED and engine.connector is not None)


def _answers(instances: "pd.Series[str]") -> dict[str, int]:
    return {str(name): int(count) for name, count in instances.value_counts().items() if name}


def _more_than_gpus(instances: "pd.Series[str]", gpus: int | None) -> Strangers | None:
    found = _answers(instances)
    return None if not gpus or len(found) <= gpus else Strangers(_not_own(found, ()), gpus, len(found))


def _not_own(found: Mapping[str, int], own: Sequence[str]) -> dict[str, int]:
    """The surplus engines: first those of unknown names, and among them those with the fewest answers."""
    suspects = sorted(found, key=lambda name: (name in own, found[name]))
    return {name: found[name] for name in suspects[: len(found) - len(own)]}


@dataclass(frozen=True)
class Counted:
    """Output tokens of decode and combined engines, by their own counters and by the usage of the requests between their readings."""

    engines: float
    requests: float


def tokens_apart(run: Run) -> Counted | None:
    """Both counts, where they differ by more than counting explains; None if they agree or one is unknown."""
    writing = [tokens for tokens in run.engines if tokens.role is not Role.PREFILL]
    names = {tokens.name for tokens in writing}
    expected = sum(engine.role is not Role.PREFILL for engine in run.manifest.deployment.engines)
    if not names or len(names) != expected or run.gpu is None:
        return None
    shift = clock_shift(run.gpu.clock, run.manifest.clock)
    spans = [_span([tokens for tokens in writing if tokens.name == name], shift) for name in names]
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return None
    rows = run.requests.rows
    begin, end = max(span.begin for span in known), min(span.end for span in known)
    inside = rows[(rows["sent"] >= begin) & (rows["end"] <= end)]
    other = rows[~rows.index.isin(inside.index)]
    overlapping = other[(other["end"].isna()) | ((other["end"] > begin) & (other["sent"] < end))]
    # A first token that none of these engines wrote. Combined engines that hand over are among them.
    by_prefill = inside["handed_off"] & (inside["output_tokens"] > 0) & ~inside["prefill_instance"].isin(names)
    counted, asked = sum(span.tokens for span in known), float(inside["output_tokens"].sum() - by_prefill.sum())
    if counted < asked * (1 - TOKENS_APART):
        return Counted(counted, asked)
    certain = overlapping.empty and bool(rows["ok"].all()) and bool(rows["output_tokens"].notna().all())
    return Counted(counted, asked) if certain and counted > asked * (1 + TOKENS_APART) + OWN_TOKENS else None


@dataclass(frozen=True)
class _Span:
    """What one engine wrote between its first and its last reading."""

    begin: float
    end: float
    tokens: float


def _span(readings: Sequence[EngineTokens], shift: float) -> _Span | None:
    told = [(reading.t + shift, reading.output) for reading in readings if reading.output is not None]
    if len(told) < 2 or told[-1][1] < told[0][1]:
        return None
    return _Span(told[0][0], told[-1][0], told[-1][1] - told[0][1])
