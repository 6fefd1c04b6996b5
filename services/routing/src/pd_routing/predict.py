"""Predicts a request's time to first token and time per output token on an engine. Pure; all in milliseconds.

An engine that prefills and decodes spends a share of its time on prompts. Prompts are computed one after another, each in full steps. A
decode step grows with the number of answers and their context.
"""

from collections.abc import Sequence
from math import inf
from typing import Final

from pd_routing.costs import Costs
from pd_routing.view import EngineLoad, Traffic, View

# The largest share of an engine's time that prompts can take.
MOST_OF_TIME: Final = 0.95
# Decode steps that a first token takes in addition to its prompt: on average, a request arrives in the middle of a step.
STEPS_TO_FIRST: Final = 1.5
# It is a burst if in the long run prompts need at most so many times the engines without answers: costs have a margin of a tenth.
BURST_NEED: Final = 1.1
# The cost of prompts is averaged over the time of an answer, but at least over this.
LEAST_SPAN_MS: Final = 300.0


def span_ms(traffic: Traffic, tpot: float) -> float:
    """The time of an answer, over which the cost of prompts is averaged."""
    return max(min(traffic.answer * tpot, 60_000.0), LEAST_SPAN_MS)


def step_ms(costs: Costs, load: EngineLoad, traffic: Traffic, prompt: int = 0, more: int = 0) -> float:
    """The engine's decode step with `more` additional answers to a prompt of `prompt` tokens, each half written."""
    return costs.decode_ms(load.sequences + more, load.context + more * (prompt + traffic.answer / 2))


def tpot_ms(costs: Costs, load: EngineLoad, traffic: Traffic, prompt: int, *, span: float, local: bool) -> float:
    """Time per output token on an engine that gets this answer. `local`: it also gets the prompt, which delays the answers there."""
    added = costs.beside_with_launch_ms(prompt) if local else 0.0
    share = min(MOST_OF_TIME, (load.prompts_ms + added) / span)
    steady = step_ms(costs, load, traffic, prompt, 1) / (1 - share)
    return max(steady, step_ms(costs, load, traffic) + added / max(traffic.short_answer, 1.0)) if local else steady


def prompt_ms(costs: Costs, load: EngineLoad, prompt: int) -> float:
    """The time that a prompt takes on an engine."""
    if not load.sequences:
        return costs.alone_ms(prompt)
    step = costs.prompt_base - costs.overlap + costs.decode_ms(load.sequences, load.context)
    return costs.beside_ms(prompt) + max(0.0, step) * prompt / max(costs.budget - load.sequences, 1)


def ttft_ms(costs: Costs, load: EngineLoad, prompt: int) -> float:
    """Time to first token on an engine: its queue of prompts, then this prompt."""
    return load.queue_ms + prompt_ms(costs, load, prompt) + beside_prompt_ms(costs, load)


def beside_prompt_ms(costs: Costs, load: EngineLoad) -> float:
    """What a first token takes beside its prompt and the queue before it."""
    steps = STEPS_TO_FIRST * costs.decode_ms(load.sequences, load.context) if load.sequences else costs.prompt_base
    return costs.api + steps


def prompts_need(costs: Costs, traffic: Traffic) -> float:
    """The engines that do nothing else than compute the prompts."""
    return _engines_for(costs, traffic.rate, traffic.tokens)


def burst(costs: Costs, traffic: Traffic, empty: int) -> bool:
    """Whether the `empty` engines, those without answers, are enough for the prompts in the long run, so that a queue there passes."""
    return _engines_for(costs, traffic.lasting_rate, traffic.lasting_tokens) <= BURST_NEED * empty


def _engines_for(costs: Costs, rate: float, tokens: float) -> float:
    return rate * costs.alone_ms(tokens / rate) if rate else 0.0


def rearranged_tpot_ms(costs: Costs, view: View, engines: Sequence[int], prompt: int) -> float:
    """Time per output token of this answer if it and all others were spread evenly over the engines that prompts do not need.

    Where roles change with the load, engines come close to that within the time of an answer. Infinite if prompts need all engines.
    """
    writing = len(engines) - prompts_need(costs, view.traffic)
    if writing <= 0:
        return inf
    own, loads = prompt + view.traffic.answer / 2, [view.of(engine) for engine in engines]
    sequences, context = 1 + sum(load.sequences for load in loads), own + sum(load.context for load in loads)
    # At least what the answer takes alone: it cannot be spread.
    return max(costs.decode_ms(1, own), costs.decode_ms(sequences / writing, context / writing))
