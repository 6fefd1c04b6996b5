"""ROUTING=adaptive: engines that can prefill and decode get their roles by load. Pure.

As long as the objectives allow it, each engine serves whole requests (`Mode.PLAIN`). When prompts would slow answers down too much, prefill
and decode are separated (`Mode.SPLIT`): engines that decode no answers compute prompts. Answers go to engines that already decode some, as
long as these stay within the objective, so that other engines remain free of answers. The engine that decodes is chosen when the prompt is
computed. An engine whose last answer has ended computes prompts again. `View.correction` corrects predictions that are too optimistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, sqrt
from typing import Final

from pd_routing.costs import Costs
from pd_routing.predict import burst, prompts_need, span_ms, tpot_ms, ttft_ms
from pd_routing.view import View

# Shares of the TPOT objective: above the first, plain engines are predicted to fail; below the second, to suffice again.
SPLIT_AT: Final = 0.95
PLAIN_AT: Final = 0.85
# The most that tokens may take where one engine does nothing but prompts, as a share of what they take on plain engines: else roles would not help.
APART_AT: Final = 0.9
# The shortest time between two changes of the mode.
DWELL_MS: Final = 1000.0
# Shares of the objectives up to which a placement is taken without a look at others.
TTFT_ENOUGH: Final = 0.65
# The share of the TTFT objective up to which a prompt waits for an engine without answers rather than make others miss the TPOT objective.
# Early rejection takes longer queues for overload (`reject.TTFT_SHARE`).
TTFT_MOST: Final = 0.8
# The same in a burst: one late first token is better than many late answers.
TTFT_BURST: Final = 1.2
OVERFLOW_TPOT: Final = 0.85
DECODE_TPOT: Final = 0.92
# The same while prompts need all engines without answers. A burst is over before its answers are, and costs have a margin of a tenth.
NEEDED_TPOT: Final = 1.15
LOCAL_TPOT: Final = 0.9
# The penalty per answer on an engine, as a share of the TTFT objective, if no engine can meet it.
PER_ANSWER: Final = 0.02
# The 90th percentile of the number of prompts during a short answer, in standard deviations above the mean.
TENTH: Final = 1.28


class Mode(StrEnum):
    """Whether prompts and answers are computed on separate engines."""

    PLAIN = "plain"
    SPLIT = "split"


class Why(StrEnum):
    """The reason for a placement, shown to clients that ask for timing."""

    PLAIN = "plain"
    LOCAL = "local"
    HANDED_OVER = "handed over"
    OVERFLOW = "overflow"
    WAITS = "waits"
    LEAST_LATE = "least late"


@dataclass(frozen=True, slots=True)
class Placement:
    """The engine that computes a prompt, and whether it also decodes; if not, `decode_on` chooses the one that does, once the prompt is computed."""

    engine: int
    local: bool
    why: Why


def plain_tpot_ms(costs: Costs, view: View, engines: int) -> float:
    """The 90th percentile of TPOT, ms, if every engine served whole requests."""
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


def apart_tpot_ms(costs: Costs, view: View, engines: int) -> float:
    """TPOT, ms, if one engine computed all prompts and the others wrote all answers; 0 if prompts need more than one."""
    traffic, writing = view.traffic, engines - 1
    if prompts_need(costs, traffic) >= 1:
        return 0.0
    context = (traffic.tokens / traffic.rate if traffic.rate else 0.0) + traffic.answer / 2
    grows = traffic.rate * traffic.answer * (costs.decode_ms(1, context) - costs.decode_base)
    return costs.decode_base / (1 - grows / writing) if grows < writing else inf


@dataclass(slots=True)
class ModeSwitch:
    """The mode, with the state that keeps it from oscillating."""

    mode: Mode = Mode.PLAIN
    since: float = -inf

    def look(self, costs: Costs, view: View, engines: int, now: float) -> Mode:
        """Update and return the mode; `now` in ms."""
        if now - self.since >= DWELL_MS:
            plain, objective = plain_tpot_ms(costs, view, engines), view.correction * view.objectives.tpot
            helps = apart_tpot_ms(costs, view, engines) <= APART_AT * plain
            if self.mode is Mode.PLAIN and plain > SPLIT_AT * objective and helps:
                self.mode, self.since = Mode.SPLIT, now
            elif self.mode is Mode.SPLIT and (plain < PLAIN_AT * objective or not helps):
                self.mode, self.since = Mode.PLAIN, now
        return self.mode


def place(costs: Costs, view: View, mode: Mode, engines: Sequence[int], prompt: int) -> Placement:
    """The placement of a request; among equal engines, the first one."""
    return _plain(costs, view, engines, prompt) if mode is Mode.PLAIN else _split(costs, view, engines, prompt)


def _plain(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> Placement:
    objectives = view.objectives

    def strain(engine: int) -> tuple[bool, float]:
        load = view.of(engine)
        return not view.fits(engine, prompt), max(
            ttft_ms(costs, load, prompt) / objectives.ttft,
            _tpot(costs, view, engine, prompt, local=True) / objectives.tpot,
        )

    return Placement(min(engines, key=strain), local=True, why=Why.PLAIN)


def _split(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> Placement:
    objectives = view.objectives
    ttft = {engine: ttft_ms(costs, view.of(engine), prompt) for engine in engines}
    empty = [engine for engine in engines if not view.of(engine).sequences]
    enough = TTFT_ENOUGH * objectives.ttft
    soonest = min(empty, key=ttft.__getitem__, default=None)
    handed_over = inf if soonest is None else ttft[soonest] + costs.handover_ms(prompt)
    if soonest is not None and handed_over <= enough:
        return Placement(soonest, local=False, why=Why.HANDED_OVER)
    tpot = {engine: _tpot(costs, view, engine, prompt, local=True) for engine in engines}
    limit = OVERFLOW_TPOT * view.correction * objectives.tpot
    roomy = [
        e for e in engines if view.of(e).sequences and tpot[e] <= limit and ttft[e] <= enough and view.fits(e, prompt)
    ]
    if roomy:
        return Placement(min(roomy, key=tpot.__getitem__), local=True, why=Why.OVERFLOW)
    late = min(engines, key=lambda e: ttft[e] + PER_ANSWER * objectives.ttft * view.of(e).sequences)
    delays = tpot[late] > objectives.tpot  # the answers there
    writes = view.of(late).sequences > 0 and view.fits(late, prompt)
    if writes and not delays and ttft[late] > enough:  # no time for a hand-over
        return Placement(late, local=True, why=Why.OVERFLOW)
    most = TTFT_BURST if burst(costs, view.traffic, len(empty)) else TTFT_MOST
    if delays and soonest is not None and soonest != late and handed_over <= most * objectives.ttft:
        return Placement(soonest, local=False, why=Why.WAITS)
    return Placement(late, local=False, why=Why.LEAST_LATE)


def place_local_first(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> Placement:
    """The placement for ROUTING=local_first: one engine serves the whole request if it meets the objectives; there is no mode and no state."""
    objectives = view.objectives
    ttft = {engine: ttft_ms(costs, view.of(engine), prompt) for engine in engines}
    tpot = {engine: _tpot(costs, view, engine, prompt, local=True) for engine in engines}
    enough, limit = TTFT_ENOUGH * objectives.ttft, LOCAL_TPOT * view.correction * objectives.tpot
    local = [e for e in engines if ttft[e] <= enough and tpot[e] <= limit and view.fits(e, prompt)]
    if local:
        return Placement(min(local, key=tpot.__getitem__), local=True, why=Why.LOCAL)
    in_time = [engine for engine in engines if ttft[engine] + costs.handover_ms(prompt) <= enough]
    if in_time:
        fewest = min(in_time, key=lambda engine: (view.of(engine).sequences, ttft[engine]))
        return Placement(fewest, local=False, why=Why.HANDED_OVER)
    return Placement(min(engines, key=ttft.__getitem__), local=False, why=Why.LEAST_LATE)


def decode_on(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> int:
    """The engine that decodes after a computed prompt: one that already decodes, if it stays within the objective; else another one.

    As long as the objective is not missed by much, no engine that prompts need begins to decode.
    """
    tpot = {engine: _tpot(costs, view, engine, prompt, local=False) for engine in engines}
    writing = [engine for engine in engines if view.of(engine).sequences]
    empty = [engine for engine in engines if not view.of(engine).sequences]
    least = min(writing, key=lambda e: (not view.fits(e, prompt), tpot[e]), default=None)
    limit = DECODE_TPOT * view.correction
    if prompts_need(costs, view.traffic) > len(empty) - 1:  # with one engine less, prompts would queue up without end
        limit = max(limit, NEEDED_TPOT)
    if least is not None and tpot[least] <= limit * view.objectives.tpot and view.fits(least, prompt):
        return least
    if len(empty) >= 2 or least is None:
        return min(empty, key=lambda engine: view.of(engine).queue_ms)
    return least


def decode_with_least(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> int:
    """The engine that decodes if all engines do everything: the one with the lowest TPOT."""
    return min(engines, key=lambda e: (not view.fits(e, prompt), _tpot(costs, view, e, prompt, local=False)))


def _tpot(costs: Costs, view: View, engine: int, prompt: int, *, local: bool) -> float:
    span = span_ms(view.traffic, view.objectives.tpot)
    return tpot_ms(costs, view.of(engine), view.traffic, prompt, span=span, local=local)
