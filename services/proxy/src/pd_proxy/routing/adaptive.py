"""ROUTING=adaptive: engines that can do both, and no roles to choose. Pure.

While everything can be served where it comes to (`Mode.PLAIN`), it is. When answers would become too slow beside prompts, roles emerge
(`Mode.SPLIT`): an engine that writes no answer computes prompts; answers go where answers are already written, as long as these have time for
one more, so that engines without answers remain. Where an answer goes is decided when its prompt is computed.
An engine whose last answer ends computes prompts again. What is predicted too well is put right by `View.correction`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, sqrt
from typing import Final

from pd_proxy.routing.costs import Costs
from pd_proxy.routing.predict import span_ms, tpot_ms, ttft_ms
from pd_proxy.routing.view import View

# Shares of the TPOT objective at which a deployment of plain engines is predicted to fail, or to do again.
SPLIT_AT: Final = 0.95
PLAIN_AT: Final = 0.85
# A deployment that has changed its mode stays in it for a while.
DWELL_MS: Final = 1000.0
# Shares of the objectives up to which a way is good enough to be taken without looking at others.
TTFT_ENOUGH: Final = 0.65
OVERFLOW_TPOT: Final = 0.85
DECODE_TPOT: Final = 0.92
LOCAL_TPOT: Final = 0.9
# What an answer already there counts for, as a share of the TTFT objective, where no engine is in time.
PER_ANSWER: Final = 0.02
# Of the number of prompts that come beside a short answer, one in ten is larger than its mean by so many standard deviations.
TENTH: Final = 1.28


class Mode(StrEnum):
    """Whether prompts and answers are kept apart."""

    PLAIN = "plain"
    SPLIT = "split"


class Why(StrEnum):
    """Why a request goes where it goes; clients that ask for timing read it."""

    PLAIN = "plain"
    LOCAL = "local"
    HANDED_OVER = "handed over"
    OVERFLOW = "overflow"
    LEAST_LATE = "least late"


@dataclass(frozen=True, slots=True)
class Placement:
    """Which engine computes a prompt, and whether it writes the answer too; if not, `decode_on` says which does, when it is time."""

    engine: int
    local: bool
    why: Why


def plain_tpot_ms(costs: Costs, view: View, engines: int) -> float:
    """The TPOT that nine in ten answers would stay below, were all prompts computed where their answers are written."""
    traffic = view.traffic
    context = (traffic.tokens / traffic.rate if traffic.rate else 0.0) + traffic.answer / 2
    busy = (
        traffic.work / engines
        + traffic.rate * traffic.answer / engines * costs.decode_ms(1, context)
        - (traffic.rate * traffic.answer / engines * costs.decode_base)
    )
    if busy >= 1:
        return inf
    mean = costs.decode_base / (1 - busy)
    short = max(traffic.short_answer, 1.0)
    return mean + TENTH * sqrt(traffic.work_squared / engines * short * mean) / short


@dataclass(slots=True)
class ModeSwitch:
    """The mode, with what keeps it from changing to and fro."""

    mode: Mode = Mode.PLAIN
    since: float = -inf

    def look(self, costs: Costs, view: View, engines: int, now: float) -> Mode:
        """The mode at this moment (ms)."""
        if now - self.since >= DWELL_MS:
            plain, objective = plain_tpot_ms(costs, view, engines), view.correction * view.objectives.tpot
            if self.mode is Mode.PLAIN and plain > SPLIT_AT * objective:
                self.mode, self.since = Mode.SPLIT, now
            elif self.mode is Mode.SPLIT and plain < PLAIN_AT * objective:
                self.mode, self.since = Mode.PLAIN, now
        return self.mode


def place(costs: Costs, view: View, mode: Mode, engines: Sequence[int], prompt: int) -> Placement:
    """Where a request goes; of equals the first one."""
    return _plain(costs, view, engines, prompt) if mode is Mode.PLAIN else _split(costs, view, engines, prompt)


def _plain(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> Placement:
    objectives = view.objectives

    def strain(engine: int) -> float:
        load = view.of(engine)
        return max(
            ttft_ms(costs, load, prompt) / objectives.ttft,
            _tpot(costs, view, engine, prompt, local=True) / objectives.tpot,
        )

    return Placement(min(engines, key=strain), local=True, why=Why.PLAIN)


def _split(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> Placement:
    objectives = view.objectives
    ttft = {engine: ttft_ms(costs, view.of(engine), prompt) for engine in engines}
    empty = [engine for engine in engines if not view.of(engine).sequences]
    enough = TTFT_ENOUGH * objectives.ttft
    if empty:
        soonest = min(empty, key=ttft.__getitem__)
        if ttft[soonest] + costs.handover_ms(prompt) <= enough:
            return Placement(soonest, local=False, why=Why.HANDED_OVER)
    tpot = {engine: _tpot(costs, view, engine, prompt, local=True) for engine in engines}
    limit = OVERFLOW_TPOT * view.correction * objectives.tpot
    roomy = [e for e in engines if view.of(e).sequences and tpot[e] <= limit and ttft[e] <= enough]
    if roomy:
        return Placement(min(roomy, key=tpot.__getitem__), local=True, why=Why.OVERFLOW)
    late = min(engines, key=lambda e: ttft[e] + PER_ANSWER * objectives.ttft * view.of(e).sequences)
    return Placement(late, local=False, why=Why.LEAST_LATE)


def place_local_first(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> Placement:
    """Where a request goes if it stays where it comes to whenever that is in time: no modes, and no memory."""
    objectives = view.objectives
    ttft = {engine: ttft_ms(costs, view.of(engine), prompt) for engine in engines}
    tpot = {engine: _tpot(costs, view, engine, prompt, local=True) for engine in engines}
    enough, limit = TTFT_ENOUGH * objectives.ttft, LOCAL_TPOT * view.correction * objectives.tpot
    local = [engine for engine in engines if ttft[engine] <= enough and tpot[engine] <= limit]
    if local:
        return Placement(min(local, key=tpot.__getitem__), local=True, why=Why.LOCAL)
    in_time = [engine for engine in engines if ttft[engine] + costs.handover_ms(prompt) <= enough]
    if in_time:
        fewest = min(in_time, key=lambda engine: (view.of(engine).sequences, ttft[engine]))
        return Placement(fewest, local=False, why=Why.HANDED_OVER)
    return Placement(min(engines, key=ttft.__getitem__), local=False, why=Why.LEAST_LATE)


def decode_on(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> int:
    """Which engine writes the answer to a prompt that is computed: one that writes some already, if it has time; else one more."""
    tpot = {engine: _tpot(costs, view, engine, prompt, local=False) for engine in engines}
    writing = [engine for engine in engines if view.of(engine).sequences]
    empty = [engine for engine in engines if not view.of(engine).sequences]
    least = min(writing, key=tpot.__getitem__, default=None)
    if least is not None and tpot[least] <= DECODE_TPOT * view.correction * view.objectives.tpot:
        return least
    if len(empty) >= 2 or least is None:
        return min(empty, key=lambda engine: view.of(engine).queue_ms)
    return least


def decode_with_least(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> int:
    """Which engine writes the answer where everything is shared: the one with the least TPOT."""
    return min(engines, key=lambda engine: _tpot(costs, view, engine, prompt, local=False))


def _tpot(costs: Costs, view: View, engine: int, prompt: int, *, local: bool) -> float:
    span = span_ms(view.traffic, view.objectives.tpot)
    return tpot_ms(costs, view.of(engine), view.traffic, prompt, span=span, local=local)
