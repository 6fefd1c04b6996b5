"""A simulated engine whose KV room is full preempts, and its answers stay the same."""

import asyncio

import msgspec
import pytest
from support.simulator import Simulator, combined_tokens, disaggregated, fast_profile, running, settings_for

from pd_contracts.names import Connector, Role

PROMPTS = [[300 + 7 * number + place for place in range(60)] for number in range(3)]
OUTPUT = 100
FULL = fast_profile(memory=msgspec.structs.replace(fast_profile().memory, kv_tokens=256))


async def test_preempted_answers_are_what_they_would_have_been() -> None:
    wanted = [await combined_tokens(prompt, OUTPUT) for prompt in PROMPTS]

    async with running(settings_for(max_model_len=256), FULL) as engine:
        answers = await asyncio.gather(*(engine.complete(prompt, max_tokens=OUTPUT) for prompt in PROMPTS))
        preempted = await _preempted(engine)

    assert preempted > 0
    assert [answer.token_ids for answer in answers] == wanted


@pytest.mark.parametrize("connector", list(Connector))
async def test_preempted_decodes_go_on_without_prefill(connector: Connector) -> None:
    wanted = [await combined_tokens(prompt, OUTPUT) for prompt in PROMPTS]
    first, second = (
        settings_for(role, kv_connector=connector, max_model_len=256) for role in (Role.PREFILL, Role.DECODE)
    )

    async with running(first, fast_profile()) as prefill, running(second, FULL) as decode:
        pairs = await asyncio.gather(
            *(
                disaggregated(prefill, decode, prompt, unique=f"{number:032x}", max_tokens=OUTPUT)
                for number, prompt in enumerate(PROMPTS)
            )
        )
        preempted = await _preempted(decode)

    assert preempted > 0
    assert [answer.token_ids for _, answer in pairs] == wanted


async def _preempted(engine: Simulator) -> float:
    return await engine.metric("vllm:num_preemptions_total{")
