"""Early rejection: decides before any work is done whether a request would break the objectives. Pure.

Beyond their capacity engines serve no request in time, because each excess request delays all others. So a request is rejected if its first
token would come too late, or if its answer would make all answers on every engine too slow, and if that is true of many recent requests:
a burst below the capacity passes, and a prompt that is too long for the objective even on idle engines does not count. Where roles change with the load, what would be different with other roles has more time: while roles emerge, every
engine computes prompts beside answers, but not for as long as an answer takes. So has a prompt that waits for an engine without answers, because
answers would be late elsewhere: the rule lets it wait in a burst only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from pd_routing.costs import Costs
from pd_routing.predict import rearranged_tpot_ms, span_ms, step_ms, tpot_ms, ttft_ms
from pd_routing.view import View

# Shares of the objectives above which requests are late. For TTFT, the queue can still grow before an admitted request has its turn, and
# predictions have errors. For TPOT, decodes are meant to run close to the objective, and costs have a margin of a tenth.
TTFT_SHARE: Final = 0.9
TPOT_SHARE: Final = 1.1
# The same in overload. Then engines are always as full as these allow, and with the shares above, small errors make most answers miss.
FULL_TTFT_SHARE: Final = 0.8
FULL_TPOT_SHARE: Final = 1.0
# The same where roles change, if answers were spread over the engines that prompts do not need. A tenth more than these can write in time
# is what remains of the time before roles changed, and ends with its answers.
PASSING_SHARE: Final = 1.2
MOST_RETRY_S: Final = 60


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve a request: the engine that computes the prompt, and those that could decode (only the same one, if `local`).

    `hands_off`: the engine that computes the prompt also writes the first token. `roles_change`: those that could decode become engines for
    prompts, and back, as the load requires. `waits`: the prompt is let wait for this engine, though another one would compute it sooner.
    """

    prompt_at: int
    answer_at: Sequence[int]
    local: bool
    hands_off: bool = False
    roles_change: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted TTFT and TPOT in ms; `sentence` says which objective would be missed, `overload` whether that happens to many requests, `passing` whether other roles would help, or its prompt is let wait in a burst, `alone` whether it would be missed on idle engines, too."""

    ttft: float
    tpot: float
    sentence: str = ""
    retry_after_s: int = 1
    overload: bool = False
    passing: bool = False
    alone: bool = False

    @property
    def late(self) -> bool:
        """Whether the request would miss an objective."""
        return bool(self.sentence)

    @property
    def refused(self) -> bool:
        """Whether the request should be rejected."""
        return self.late and self.overload


def predict(costs: Costs, view: View, prompt: int, way: Way) -> Prediction:
    """The prediction for a request on this way."""
    found = _predict(costs, view, prompt, way)
    if not found.late:
        return found
    idle = View({}, view.traffic, view.objectives, overload=False)
    return replace(found, alone=_predict(costs, idle, prompt, way).late)


def _predict(costs: Costs, view: View, prompt: int, way: Way) -> Prediction:
    ttft = ttft_on(costs, view, prompt, way)
    tpot = min(_tpot(costs, view, prompt, engine) for engine in way.answer_at)
    objectives, overload = view.objectives, view.overload
    most_ttft = objectives.ttft * (FULL_TTFT_SHARE if overload else TTFT_SHARE)
    if ttft > most_ttft:
        text = f"the first token would come after {ttft:.0f} ms, and TTFT_SLO_MS is {objectives.ttft:g}"
        return Prediction(ttft, tpot, text, _retry_s(ttft - most_ttft), overload, passing=way.waits)
    if tpot > objectives.tpot * (FULL_TPOT_SHARE if overload else TPOT_SHARE):
        text = f"each token would take {tpot:.1f} ms on the least loaded engine, and TPOT_SLO_MS is {objectives.tpot:g}"
        passing = _passes(costs, view, prompt, way)
        return Prediction(ttft, tpot, text, _retry_s(span_ms(view.traffic, objectives.tpot) / 4), overload, passing)
    if not any(view.fits(engine, prompt) for engine in way.answer_at):
        text = "no engine that could decode it has room for its KV"
        return Prediction(ttft, tpot, text, _retry_s(span_ms(view.traffic, objectives.tpot) / 4), overload)
    return Prediction(ttft, tpot)


def ttft_on(costs: Costs, view: View, prompt: int, way: Way) -> float:
    """Time to first token on a way. The hand-over comes before the first token, unless prefill writes it."""
    here = ttft_ms(costs, view.of(way.prompt_at), prompt)
    if way.local or way.hands_off:
        return here
    return here + costs.handover_ms(prompt) + min(step_ms(costs, view.of(e), view.traffic) for e in way.answer_at)


def _tpot(costs: Costs, view: View, prompt: int, engine: int) -> float:
    span = span_ms(view.traffic, view.objectives.tpot)
    return tpot_ms(costs, view.of(engine), view.traffic, prompt, span=span, local=False)


def _passes(costs: Costs, view: View, prompt: int, way: Way) -> bool:
    """Whether answers are too slow only until roles have changed."""
    most = PASSING_SHARE * view.objectives.tpot
    return way.roles_change and rearranged_tpot_ms(costs, view, way.answer_at, prompt) <= most


def _retry_s(excess_ms: float) -> int:
    return min(MOST_RETRY_S, max(1, ceil(excess_ms / 1e3)))
