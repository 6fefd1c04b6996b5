"""Early rejection: whether a request would break the objectives, told before it costs anything. Pure.

Beyond their capacity engines serve nobody in time: what they take on too much makes all the others late. So a request is turned away
whose own first token would come too late, or whose answer no engine has room for without all answers there becoming too slow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from pd_proxy.routing.costs import Costs
from pd_proxy.routing.predict import span_ms, step_ms, tpot_ms, ttft_ms
from pd_proxy.routing.view import View

# Shares of the objectives from which on requests are turned away. A queue grows until a request that is admitted has its turn, and
# predictions are off by a little; TPOT is where decodes are meant to be close to the objective.
TTFT_SHARE: Final = 0.9
TPOT_SHARE: Final = 1.0
MOST_RETRY_S: Final = 60


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the engines: which computes the prompt, and which could write the answer (the same alone, if `local`).

    `hands_off`: the first token comes from where the prompt is computed in any case.
    """

    prompt_at: int
    answer_at: Sequence[int]
    local: bool
    hands_off: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a request would get, ms; and whether the objectives allow it. `least_wait` is after how long it may be worth another try."""

    ttft: float
    tpot: float
    sentence: str = ""
    retry_after_s: int = 1

    @property
    def refused(self) -> bool:
        """Whether it should be turned away."""
        return bool(self.sentence)


def predict(costs: Costs, view: View, prompt: int, way: Way) -> Prediction:
    """What becomes of a request on this way."""
    ttft = ttft_on(costs, view, prompt, way)
    tpot = min(_tpot(costs, view, prompt, engine, way) for engine in way.answer_at)
    objectives = view.objectives
    if ttft > TTFT_SHARE * objectives.ttft:
        text = f"the first token would come after {ttft:.0f} ms, and TTFT_SLO_MS is {objectives.ttft:g}"
        return Prediction(ttft, tpot, text, _retry_s(ttft - TTFT_SHARE * objectives.ttft))
    if tpot > TPOT_SHARE * objectives.tpot:
        text = f"each token would take {tpot:.1f} ms on the least loaded engine, and TPOT_SLO_MS is {objectives.tpot:g}"
        return Prediction(ttft, tpot, text, _retry_s(span_ms(view.traffic, objectives.tpot) / 4))
    return Prediction(ttft, tpot)


def ttft_on(costs: Costs, view: View, prompt: int, way: Way) -> float:
    """Time to first token on a way; a hand-over comes between prompt and first token, unless that is prefill's."""
    here = ttft_ms(costs, view.of(way.prompt_at), prompt)
    if way.local or way.hands_off:
        return here
    return here + costs.handover_ms(prompt) + min(step_ms(costs, view.of(e), view.traffic) for e in way.answer_at)


def _tpot(costs: Costs, view: View, prompt: int, engine: int, way: Way) -> float:
    span = span_ms(view.traffic, view.objectives.tpot)
    return tpot_ms(costs, view.of(engine), view.traffic, prompt, span=span, local=way.local)


def _retry_s(excess_ms: float) -> int:
    return min(MOST_RETRY_S, max(1, ceil(excess_ms / 1e3)))
