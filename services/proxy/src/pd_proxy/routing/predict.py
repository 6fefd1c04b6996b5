"""Time to first token and time per output token that a request would have on an engine. Pure; all in milliseconds.

An engine that computes prompts beside its answers gives them a share of its time. Prompts come one after another, each in steps that are
full. Decode's step grows with the number of answers and what they look back on.
"""

from typing import Final

from pd_proxy.routing.costs import Costs
from pd_proxy.routing.view import EngineLoad, Traffic

# Prompts cannot take more of an engine's time than this, however many come.
MOST_OF_TIME: Final = 0.95
# Steps that a first token takes on a decoding engine beside its prompt: on average it comes in the middle of one.
STEPS_TO_FIRST: Final = 1.5
# What prompts cost an engine is averaged over an answer, but not over less.
LEAST_SPAN_MS: Final = 300.0


def span_ms(traffic: Traffic, tpot: float) -> float:
    """The time of an answer, over which prompts beside it are averaged."""
    return max(min(traffic.answer * tpot, 60_000.0), LEAST_SPAN_MS)


def step_ms(costs: Costs, load: EngineLoad, traffic: Traffic, prompt: int = 0, more: int = 0) -> float:
    """A step of the engine with `more` answers to a prompt of so many tokens, half-way through them."""
    return costs.decode_ms(load.sequences + more, load.context + more * (prompt + traffic.answer / 2))


def tpot_ms(costs: Costs, load: EngineLoad, traffic: Traffic, prompt: int, *, span: float, local: bool) -> float:
    """Time per output token on an engine that gets this answer; `local`: and its prompt, which makes one short answer there wait."""
    added = costs.beside_ms(prompt) if local else 0.0
    share = min(MOST_OF_TIME, (load.prompts_ms + added) / span)
    steady = step_ms(costs, load, traffic, prompt, 1) / (1 - share)
    return max(steady, step_ms(costs, load, traffic) + added / max(traffic.short_answer, 1.0)) if local else steady


def prompt_ms(costs: Costs, load: EngineLoad, prompt: int) -> float:
    """What a prompt takes of an engine's time."""
    if not load.sequences:
        return costs.alone_ms(prompt)
    step = costs.prompt_base - costs.overlap + costs.decode_ms(load.sequences, load.context)
    return costs.beside_ms(prompt) + max(0.0, step) * prompt / max(costs.budget - load.sequences, 1)


def ttft_ms(costs: Costs, load: EngineLoad, prompt: int) -> float:
    """Time to first token on an engine, where the prompt's queue ends."""
    waits = load.queue_ms + costs.api + prompt_ms(costs, load, prompt)
    if not load.sequences:
        return waits + costs.prompt_base
    return waits + STEPS_TO_FIRST * costs.decode_ms(load.sequences, load.context)
