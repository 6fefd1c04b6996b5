"""KV_BATCHED between simulated engines: nobody waits inside a step, and what does not come is computed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from support.simulator import Simulator, disaggregated, fast_profile, pair_id, running, settings_for

from pd_contracts.names import Connector, Role

LENGTHS = (1, 2, 16, 17, 200, 700)


def prompt(length: int) -> list[int]:
    return [300 + 7 * number % 20_000 for number in range(length)]


@contextlib.asynccontextmanager
async def pair(*, load_timeout_s: float = 30.0) -> AsyncIterator[tuple[Simulator, Simulator]]:
    shared = {"kv_connector": Connector.P2P_NCCL, "kv_batched": True, "kv_load_timeout_s": load_timeout_s}
    first, second = settings_for(Role.PREFILL, **shared), settings_for(Role.DECODE, **shared)
    async with running(first, fast_profile()) as prefill, running(second, fast_profile()) as decode:
        yield prefill, decode


async def settled(decode: Simulator) -> dict[str, int]:
    async with asyncio.timeout(20):
        while (books := await decode.books())["held"] + books["waiting"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return books


async def some(decode: Simulator, entry: str) -> None:
    async with asyncio.timeout(20):
        while not (await decode.books())[entry]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
async def test_decode_writes_what_a_combined_engine_writes(*, stream: bool) -> None:
    async with running(settings_for(), fast_profile()) as combined, pair() as (prefill, decode):
        for length in LENGTHS:
            plain = await combined.complete(prompt(length), max_tokens=12, stream=stream)
            _, answer = await disaggregated(
                prefill, decode, prompt(length), unique=f"{length:032x}", max_tokens=12, stream=stream
            )
            assert answer.token_ids == plain.token_ids, f"a prompt of {length} tokens"
        books = await settled(decode)
        assert (books["received"], books["consumed"], books["freed"]) == (len(LENGTHS), len(LENGTHS) - 1, 1)


async def test_kv_that_is_lost_is_computed() -> None:
    async with running(settings_for(), fast_profile()) as combined, pair(load_timeout_s=0.2) as (prefill, decode):
        plain = await combined.complete(prompt(200), max_tokens=12)
        await decode.post("/sim/faults", {"drop_kv": True})
        _, answer = await disaggregated(prefill, decode, prompt(200), max_tokens=12)

        assert answer.token_ids == plain.token_ids
        assert (await settled(decode))["consumed"] == 0


async def test_a_request_without_kv_holds_up_nobody() -> None:
    async with pair() as (prefill, decode):
        lost = asyncio.create_task(
            decode.complete(prompt(200), max_tokens=4, request_id=pair_id(prefill, decode, "0" * 32))
        )
        await some(decode, "waiting")

        _, answer = await disaggregated(prefill, decode, prompt(50), unique="1" * 32, max_tokens=4)

        assert len(answer.token_ids) == 4
        assert not lost.done()
        lost.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lost
        assert (await settled(decode))["consumed"] == 1


async def test_kv_of_a_request_that_has_left_is_dropped_and_its_id_can_be_used_again() -> None:
    async with pair() as (prefill, decode):
        request_id = pair_id(prefill, decode, "2" * 32)
        left = asyncio.create_task(decode.complete(prompt(200), max_tokens=4, request_id=request_id))
        await some(decode, "waiting")
        left.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await left
        await settled(decode)

        await prefill.complete(prompt(200), max_tokens=1, request_id=request_id)
        await some(decode, "freed")
        _, answer = await disaggregated(prefill, decode, prompt(200), unique="2" * 32, max_tokens=4)

        assert len(answer.token_ids) == 4
        books = await settled(decode)
        assert (books["received"], books["consumed"], books["freed"]) == (2, 1, 1)
