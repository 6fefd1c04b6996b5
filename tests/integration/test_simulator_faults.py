"""The simulator's faults, switched at run time, and how its counters show them."""

import asyncio
import json
import signal
from typing import Any

import aiohttp
import pytest
from support.simulator import Answer, disaggregated, fast_profile, pair_id, running, settings_for, spawned

from pd_contracts.names import Connector, Role
from pd_contracts.settings import SettingsError, load
from pd_simulator.faults import Faults
from pd_simulator.settings import Settings

PROMPT = list(range(40))


async def test_faults_are_shown_set_as_a_whole_and_ended() -> None:
    async with running(settings_for(sim_faults='{"status": 503}'), fast_profile()) as engine:
        assert (await engine.complete(PROMPT, max_tokens=1)).status == 503
        shown = (await engine.post("/sim/faults", {"mute": True})).body
        assert (shown["mute"], shown["status"]) == (True, None)
        assert json.loads((await engine.get("/sim/faults"))[1]) == shown
        assert (await engine.complete(PROMPT, max_tokens=1)).status == 200
        assert not any((await engine.post("/sim/faults", {})).body.values())


@pytest.mark.parametrize(
    "faults",
    [{"explode": True}, {"status": 200}, {"stall": "sometimes"}, {"slow_kv_s": -1}, {"die_after_tokens": 0}, []],
)
async def test_what_is_no_fault_is_refused_and_changes_nothing(faults: Any) -> None:
    async with running(settings_for(), fast_profile()) as engine:
        assert (await engine.post("/sim/faults", faults)).status == 400
        assert (await engine.complete(PROMPT, max_tokens=1)).status == 200


def test_faults_of_the_start_are_checked() -> None:
    assert load(Settings, {"SIM_FAULTS": '{"hang": true}', "SIM_CORRUPT_KV": "on"}).faults() == Faults(
        hang=True, corrupt_kv=True
    )
    with pytest.raises(SettingsError, match="SIM_FAULTS"):
        load(Settings, {"SIM_FAULTS": '{"explode": true}'})


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_an_engine_that_does_not_answer_can_still_be_mended(fault: str) -> None:
    async with running(settings_for(), fast_profile()) as engine:
        await engine.post("/sim/faults", {fault: True})
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await asyncio.wait_for(engine.get("/health"), 0.2)
        await engine.post("/sim/faults", {})
        assert (await engine.get("/health"))[0] == 200


@pytest.mark.parametrize("stall", ["before_first_token", "after_first_token"])
async def test_a_stall_holds_all_streams_up_until_it_ends(stall: str) -> None:
    async with running(settings_for(), fast_profile()) as engine:
        await engine.post("/sim/faults", {"stall": stall})
        answers: list[asyncio.Task[Answer]] = [
            asyncio.create_task(engine.complete(PROMPT, max_tokens=5, stream=True)) for _ in range(2)
        ]
        after = stall == "after_first_token"
        await engine.until("vllm:generation_tokens_total", lambda count: (count > 0) == after)
        done, _ = await asyncio.wait(answers, timeout=0.3)
        assert not done
        assert (await engine.get("/health"))[0] == 200
        assert (await engine.metric("vllm:generation_tokens_total") > 0) == after
        await engine.post("/sim/faults", {})
        assert [len(answer.token_ids) for answer in await asyncio.gather(*answers)] == [5, 5]


async def test_an_engine_can_be_killed_in_the_middle_of_its_streams() -> None:
    async with spawned(settings_for(sim_profile="slow-exact")) as engine:
        await engine.post("/sim/faults", {"die_after_tokens": 5})
        with pytest.raises(aiohttp.ClientError):
            await engine.complete(PROMPT, max_tokens=20, stream=True)
        assert engine.process is not None
        assert await engine.process.wait() == -signal.SIGKILL


async def test_books_tell_kv_that_was_lost_and_the_request_that_waits_for_it() -> None:
    async with (
        running(settings_for(Role.PREFILL, kv_connector=Connector.P2P_NCCL), fast_profile()) as prefill,
        running(
            settings_for(Role.DECODE, kv_connector=Connector.P2P_NCCL, sim_faults='{"drop_kv": true}'), fast_profile()
        ) as decode,
    ):
        waiting = asyncio.create_task(disaggregated(prefill, decode, PROMPT, max_tokens=3))
        await decode.until("sim:kv_waiting", lambda count: count == 1)
        books = await decode.books()
        assert (books["received"], books["freed"], books["held"]) == (1, 1, 0)
        assert (books["waiting"], books["waited"]) == (1, 1)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_kv_without_memory_for_it_changes_the_answer_and_nobody_says_so() -> None:
    async with (
        running(settings_for(Role.PREFILL, kv_connector=Connector.P2P_NCCL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE, kv_connector=Connector.P2P_NCCL), fast_profile()) as decode,
    ):
        _, right = await disaggregated(prefill, decode, PROMPT, max_tokens=3, unique="a")
        await decode.post("/sim/faults", {"out_of_memory": True})
        _, wrong = await disaggregated(prefill, decode, PROMPT, max_tokens=3, unique="b")
        assert wrong.status == 200
        assert wrong.token_ids != right.token_ids
        books = await decode.books()
        assert (books["received"], books["consumed"], books["held"]) == (2, 2, 0)


async def test_kv_whose_request_never_comes_counts_as_leaked_only_after_a_while() -> None:
    async with (
        running(settings_for(Role.PREFILL, kv_connector=Connector.P2P_NCCL), fast_profile()) as prefill,
        running(settings_for(Role.DECODE, kv_connector=Connector.P2P_NCCL, sim_leak_s=1.5), fast_profile()) as decode,
    ):
        request_id = pair_id(prefill, decode, "0")
        assert (await prefill.complete(PROMPT, request_id=request_id, max_tokens=1)).status == 200
        books = await decode.books()
        assert (books["held"], books["leaked"]) == (1, 0)
        async with asyncio.timeout(30):
            while (await decode.books())["leaked"] != 1:  # noqa: ASYNC110  a page has no event
                await asyncio.sleep(0.05)
        assert (await decode.complete(PROMPT, request_id=request_id, max_tokens=1)).status == 200
        books = await decode.books()
        assert (books["held"], books["leaked"], books["consumed"]) == (0, 0, 1)
