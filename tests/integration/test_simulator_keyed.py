"""P2pConnector between simulated engines: KV that arrives early, late, never, or for another prompt."""

import asyncio
import time
from typing import Any

import pytest
from support.simulator import Simulator, combined_tokens, fast_profile, running, settings_for

from pd_connector.net.outgoing import Outgoing
from pd_contracts.names import Role
from pd_simulator.transfer import keyed

SOURCE = 'vllm:prompt_tokens_by_source_total{engine="0",model_name="sim-llama3-8b",source='
KEY = f"{7:032x}"


def prompt(length: int, start: int = 300) -> list[int]:
    return [start + 7 * number % 20_000 for number in range(length)]


def prefill_for(decode: Simulator | None, key: str = KEY) -> dict[str, Any]:
    return {"kv_transfer_params": {"pd": {"key": key, **({"to": [decode.kv_address]} if decode else {})}}}


def decode_of(prefill: Simulator, key: str = KEY, **more: Any) -> dict[str, Any]:
    return {"kv_transfer_params": {"pd": {"key": key, "from": prefill.kv_address, **more}}}


async def test_decode_may_be_told_first_and_go_on_with_the_token_that_follows() -> None:
    plain = await combined_tokens(prompt(100), 8)
    prefill_settings, decode_settings = settings_for(Role.PREFILL), settings_for(Role.DECODE)
    async with (
        running(prefill_settings, fast_profile()) as prefill,
        running(decode_settings, fast_profile()) as decode,
    ):
        rest = asyncio.create_task(
            decode.complete([*prompt(100), 0], max_tokens=7, **decode_of(prefill, tokens=100, token="follows"))
        )
        await decode.until("sim:kv_waiting", lambda count: count == 1)
        first = await prefill.complete(prompt(100), max_tokens=1, **prefill_for(decode))

        assert first.token_ids + (await rest).token_ids == plain
        assert await decode.metric(f'{SOURCE}"external_kv_transfer"') == 100


async def test_prefill_keeps_kv_that_nobody_was_named_for_until_decode_asks() -> None:
    plain = await combined_tokens(prompt(100), 8)
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE), fast_profile()) as decode,
    ):
        first = await prefill.complete(prompt(100), max_tokens=1, **prefill_for(None))
        assert first.body["kv_transfer_params"] == {"pd": {"key": KEY, "blocks": 7, "tokens": 100}}
        assert (await prefill.books())["held"] == 1

        answer = await decode.complete(prompt(100), max_tokens=8, **decode_of(prefill))

        assert answer.token_ids == plain
        await prefill.until("sim:kv_held", lambda count: count == 0)


async def test_kv_that_does_not_come_is_computed() -> None:
    plain = await combined_tokens(prompt(100), 8)
    absent = settings_for(Role.PREFILL)
    async with running(settings_for(Role.DECODE, kv_load_timeout_s=0.5), fast_profile()) as decode:
        source = {"pd": {"key": KEY, "from": f"127.0.0.1:{absent.listen_kv_port}"}}
        answer = await decode.complete(prompt(100), max_tokens=8, kv_transfer_params=source)

        assert answer.token_ids == plain
        assert await decode.metric(f'{SOURCE}"local_compute"') == 100


async def test_other_streams_go_on_while_a_request_waits_for_kv() -> None:
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE, kv_load_timeout_s=30), fast_profile()) as decode,
    ):
        waits = asyncio.create_task(decode.complete(prompt(100), max_tokens=8, **decode_of(prefill)))
        await decode.until("sim:kv_waiting", lambda count: count == 1)

        assert len((await decode.complete(prompt(30), max_tokens=50)).token_ids) == 50

        assert not waits.done()
        waits.cancel()
        await decode.until("sim:kv_waiting", lambda count: count == 0)


async def test_kv_of_another_prompt_is_never_used() -> None:
    plain = await combined_tokens(prompt(100), 8)
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE, kv_load_timeout_s=0.5), fast_profile()) as decode,
    ):
        await prefill.complete(prompt(100, start=301), max_tokens=1, **prefill_for(decode))

        answer = await decode.complete(prompt(100), max_tokens=8, **decode_of(prefill))

        assert answer.token_ids == plain


async def test_kv_whose_request_never_comes_is_freed() -> None:
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE, kv_lease_s=0.3), fast_profile()) as decode,
    ):
        await prefill.complete(prompt(100), max_tokens=1, **prefill_for(decode))
        await decode.until("sim:kv_held", lambda count: count == 1)

        await decode.until("sim:kv_held", lambda count: count == 0)
        await prefill.until("sim:kv_held", lambda count: count == 0)


async def test_prompts_larger_than_landing_memory_are_received(landing_of_4_pages: None) -> None:
    prompts = [prompt(3000, start=300 + number) for number in range(6)]  # six pages each
    plain = [await combined_tokens(ids, 8) for ids in prompts]
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE), fast_profile()) as decode,
    ):
        pairs = [hand_over(prefill, decode, ids, f"{number:032x}") for number, ids in enumerate(prompts)]

        assert await asyncio.gather(*pairs) == plain
        assert (await decode.books())["consumed"] == 6
        await decode.until("sim:kv_held", lambda count: count == 0)


async def test_a_client_that_leaves_while_landing_memory_is_short_leaves_no_kv_behind(
    landing_of_4_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Outgoing, "_provoke", lambda *_: time.sleep(0.05)
    )  # before each copy: clients leave between two of them
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE), fast_profile()) as decode,
    ):
        for number in range(8):
            pair = asyncio.create_task(hand_over(prefill, decode, prompt(3000, start=300 + number), f"{number:032x}"))
            await asyncio.wait([pair], timeout=0.05 * number)
            pair.cancel()
            for engine in (prefill, decode):
                await engine.until("sim:kv_held", lambda count: count == 0)


@pytest.fixture(name="landing_of_4_pages")
def _landing_of_4_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "_PAGES", 4)


async def hand_over(prefill: Simulator, decode: Simulator, ids: list[int], key: str) -> list[int]:
    """The tokens of an answer whose first one is prefill's; decode is asked at once."""
    async with asyncio.TaskGroup() as both:
        first = both.create_task(prefill.complete(ids, max_tokens=1, **prefill_for(decode, key)))
        more = decode_of(prefill, key, tokens=len(ids), token="follows")
        rest = both.create_task(decode.complete([*ids, 0], max_tokens=7, **more))
    return first.result().token_ids + rest.result().token_ids


@pytest.mark.parametrize("wish", [{}, {"key": ""}, {"key": "a", "from": "nowhere"}, {"key": "a", "tokens": "many"}, 3])
async def test_a_wrong_pd_map_makes_an_ordinary_request(wish: Any) -> None:
    plain = await combined_tokens(prompt(30), 4)
    async with running(settings_for(Role.DECODE), fast_profile()) as decode:
        answer = await decode.complete(prompt(30), max_tokens=4, kv_transfer_params={"pd": wish})

        assert (answer.status, answer.token_ids) == (200, plain)


@pytest.mark.parametrize("fault", ["drop_kv", "out_of_memory"])
async def test_kv_that_is_lost_or_has_no_room_is_computed(fault: str) -> None:
    plain = await combined_tokens(prompt(100), 8)
    async with (
        running(settings_for(Role.PREFILL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE, kv_load_timeout_s=0.3), fast_profile()) as decode,
    ):
        await decode.post("/sim/faults", {fault: True})
        await prefill.complete(prompt(100), max_tokens=1, **prefill_for(decode))

        answer = await decode.complete(prompt(100), max_tokens=8, **decode_of(prefill))

        assert answer.token_ids == plain
        assert await decode.metric(f'{SOURCE}"local_compute"') == 100
        await decode.until("sim:kv_held", lambda count: count == 0)
        await decode.post("/sim/faults", {})
        await prefill.complete(prompt(101), max_tokens=1, **prefill_for(decode))
        await decode.complete(prompt(101), max_tokens=8, **decode_of(prefill))
        assert (await decode.books())["consumed"] == 1
