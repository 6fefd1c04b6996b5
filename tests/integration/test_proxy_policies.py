"""The policies, chosen by setting, with real requests."""

import asyncio

import pytest
from support.aio import until
from support.proxy import MODEL, running_proxy

from pd_contracts.names import Role
from pd_proxy.engines.policy import Policy


@pytest.mark.parametrize("policy", list(Policy))
async def test_the_policy_is_visible_and_serves(policy: Policy) -> None:
    async with running_proxy(policy=policy) as proxy:
        await proxy.pair()
        assert (await proxy.post({"model": MODEL, "prompt": "one", "max_tokens": 2})).status == 200
        assert (await proxy.stats()).policy == policy.value


async def test_least_loaded_leaves_a_busy_engine_alone() -> None:
    async with running_proxy(policy=Policy.LEAST_LOADED) as proxy:
        one, other = [await proxy.engine(Role.COMBINED, boot_id=f"boot-{number}") for number in range(2)]
        for engine in (one, other):
            engine.gate.clear()
        waiting = asyncio.create_task(proxy.post({"prompt": "one", "max_tokens": 2}))
        await until(lambda: one.calls or other.calls)
        busy, free = (one, other) if one.calls else (other, one)
        free.gate.set()
        for _ in range(4):
            assert (await proxy.post({"prompt": "one", "max_tokens": 2})).status == 200
        assert (len(busy.calls), len(free.calls)) == (1, 4)
        busy.gate.set()
        assert (await waiting).status == 200


async def test_prompts_that_begin_alike_go_to_one_prefill() -> None:
    async with running_proxy(policy=Policy.PREFIX_AFFINITY) as proxy:
        prefills = [await proxy.engine(Role.PREFILL, boot_id=f"boot-{number}") for number in range(2)]
        await proxy.engine(Role.DECODE)
        system = "You are a helpful assistant. " * 40
        for number in range(6):
            assert (await proxy.post({"prompt": f"{system} question {number}", "max_tokens": 2})).status == 200
        assert sorted(len(prefill.calls) for prefill in prefills) == [0, 6]


async def test_only_long_prompts_are_disaggregated_with_a_threshold() -> None:
    async with running_proxy(disagg_min_tokens=50) as proxy:
        prefill, decode = await proxy.pair()
        combined = await proxy.engine(Role.COMBINED)
        assert (await proxy.post({"prompt": [1] * 49, "max_tokens": 2})).status == 200
        assert (len(prefill.calls), len(decode.calls), len(combined.calls)) == (0, 0, 1)
        assert (await proxy.post({"prompt": [1] * 50, "max_tokens": 2})).status == 200
        assert (len(prefill.calls), len(decode.calls), len(combined.calls)) == (1, 1, 1)
