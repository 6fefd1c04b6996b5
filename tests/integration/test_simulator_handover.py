"""When answers and KV come, where the profile has hand-over cost time: answers a step late, and KV taken one request after another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.simulator import Simulator, disaggregated, pair_id, running, settings_for

from pd_contracts.names import Connector, Role
from pd_simulator.profile import Handoff, Profile, load_profile

pytestmark = pytest.mark.timed

STEP_S = 0.4  # of a prompt of any length


def profile_with(connector: Connector, handoff: Handoff) -> Profile:
    profile = load_profile("slow-exact")
    prefill = msgspec.structs.replace(profile.prefill, base_ms=STEP_S * 1e3, per_token_ms=0.0)
    decode = msgspec.structs.replace(profile.decode, base_ms=1.0, per_sequence_ms=0.0)
    return msgspec.structs.replace(profile, prefill=prefill, decode=decode, handoff={connector: handoff})


@contextlib.asynccontextmanager
async def pair(connector: Connector, handoff: Handoff) -> AsyncIterator[tuple[Simulator, Simulator]]:
    profile = profile_with(connector, handoff)
    first, second = (settings_for(role, kv_connector=connector) for role in (Role.PREFILL, Role.DECODE))
    async with running(first, profile) as prefill, running(second, profile) as decode:
        yield prefill, decode


async def answered_after(prefill: Simulator, decode: Simulator, name: str, wait: float = 0.0) -> float:
    """Seconds from now until prefill answers a request that is sent after `wait`."""
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(wait)
    answer = await prefill.complete([5] * 50, request_id=pair_id(prefill, decode, name), max_tokens=1)
    assert answer.status == 200
    return asyncio.get_running_loop().time() - began


async def test_an_answer_waits_for_the_step_that_follows_at_once() -> None:
    async with pair(Connector.P2P_NCCL, Handoff(late_answers=True)) as (prefill, decode):
        alone = await answered_after(prefill, decode, "0" * 32)
        times = await asyncio.gather(
            answered_after(prefill, decode, "1" * 32), answered_after(prefill, decode, "2" * 32, wait=STEP_S / 2)
        )

    assert alone < 1.5 * STEP_S
    assert min(times) > 1.7 * STEP_S  # a busy machine makes both later, but not apart
    assert abs(times[1] - times[0]) < 0.3 * STEP_S


async def test_without_late_answers_each_comes_with_its_step() -> None:
    async with pair(Connector.P2P_NCCL, Handoff()) as (prefill, decode):
        times = await asyncio.gather(
            answered_after(prefill, decode, "1" * 32), answered_after(prefill, decode, "2" * 32, wait=STEP_S / 2)
        )

    assert times[1] - times[0] > 0.7 * STEP_S


async def test_an_answer_is_not_lost_with_the_step_that_it_waited_for() -> None:
    async with pair(Connector.P2P_NCCL, Handoff(late_answers=True)) as (prefill, decode):
        first = asyncio.create_task(answered_after(prefill, decode, "1" * 32))
        second = asyncio.create_task(answered_after(prefill, decode, "2" * 32, wait=STEP_S / 2))
        await asyncio.sleep(STEP_S * 0.9)
        second.cancel()  # its client leaves before its step begins

        assert await asyncio.wait_for(first, 2) < 2.5 * STEP_S


async def test_a_decode_engine_fetches_one_request_after_another() -> None:
    took = Handoff(receive_ms=300)
    async with pair(Connector.NIXL, took) as (prefill, decode):
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(
            *(
                disaggregated(prefill, decode, [5 + number] * 50, max_tokens=2, stream=True, unique=str(number))
                for number in range(3)
            )
        )

    firsts = sorted(answer.times[0] - began for _, answer in answers)
    assert firsts[0] > STEP_S + 0.28
    assert min(firsts[1] - firsts[0], firsts[2] - firsts[1]) > 0.2
