"""How long a step takes, as `pd_simulator.steps.step_time` has it."""

from typing import Final

from pd_planner.des.compiled import inlined
from pd_planner.des.model import BATCH, DECODES, PROMPTS, TRANSFER, Floats, StepCosts

# The work of a step: prompt tokens, pairs of one of them and one that it looks back on, single tokens, tokens that these look back on, and
# milliseconds for which KV keeps it waiting.
TOKENS, PAIRS, SINGLES, CONTEXT, STALL = range(5)
WORK_COLUMNS: Final = 5


@inlined
def clear(work: Floats) -> None:
    for index in range(WORK_COLUMNS):
        work[index] = 0.0


@inlined
def add_chunk(work: Floats, tokens: int, done: int) -> None:
    """Add `tokens` of a prompt of which `done` are computed; a single one costs what a decode costs."""
    if tokens == 1:
        work[SINGLES] += 1
        work[CONTEXT] += done
    elif tokens > 1:
        work[TOKENS] += tokens
        work[PAIRS] += tokens * (done + tokens / 2)


@inlined
def step_ms(costs: StepCosts, work: Floats, busy: Floats) -> float:
    """Milliseconds of a step, but for what sending adds; they are added to `busy`."""
    decode = prompts = 0.0
    if work[SINGLES] > 0:
        decode = costs.decode_base + costs.decode_sequence * work[SINGLES] + costs.decode_context * work[CONTEXT]
    if work[TOKENS] > 0:
        share = costs.mixed_share if decode > 0 else 1.0
        prompts = costs.prefill_base + costs.prefill_token * share * work[TOKENS] + costs.prefill_pair * work[PAIRS]
        if decode > 0:
            prompts = max(0.0, prompts - costs.overlap)
    busy[PROMPTS] += prompts
    busy[DECODES] += decode
    busy[TRANSFER] += work[STALL]
    busy[BATCH] += decode * work[SINGLES]
    return float(prompts + decode + work[STALL])
