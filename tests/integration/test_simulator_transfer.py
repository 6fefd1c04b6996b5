"""KV between simulated engines: real bytes over real sockets, and what becomes of the answer if they are wrong or missing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.simulator import (
    Answer,
    Simulator,
    combined_tokens,
    disaggregated,
    fast_profile,
    pair_id,
    running,
    settings_for,
)

from pd_contracts.names import Connector, Role

LENGTHS = (1, 15, 16, 17, 200, 700)
SOURCE = 'vllm:prompt_tokens_by_source_total{engine="0",model_name="sim-llama3-8b",source='


def prompt(length: int, start: int = 300) -> list[int]:
    return [start + 7 * number % 20_000 for number in range(length)]


@contextlib.asynccontextmanager
async def pair(
    connector: Connector, folder: Path, *, corrupt: bool = False, **fields: Any
) -> AsyncIterator[tuple[Simulator, Simulator]]:
    shared = {"kv_connector": connector, "kv_shared_path": str(folder), **fields}
    prefill = settings_for(Role.PREFILL, sim_corrupt_kv=corrupt, **shared)
    decode = settings_for(Role.DECODE, **shared)
    async with running(prefill, fast_profile()) as first, running(decode, fast_profile()) as second:
        yield first, second


@pytest.mark.parametrize("connector", Connector)
@pytest.mark.parametrize("stream", [False, True])
async def test_decode_writes_what_a_combined_engine_writes(connector: Connector, stream: bool, tmp_path: Path) -> None:
    async with running(settings_for(), fast_profile()) as combined, pair(connector, tmp_path) as (prefill, decode):
        for length in LENGTHS:
            plain = await combined.complete(prompt(length), max_tokens=12, stream=stream)
            first, answer = await disaggregated(
                prefill, decode, prompt(length), unique=f"{length:032x}", max_tokens=12, stream=stream
            )

            assert answer.token_ids == plain.token_ids, f"a prompt of {length} tokens"
            assert first.token_ids == plain.token_ids[:1]


@pytest.mark.parametrize(
    ("connector", "external"),
    [(Connector.P2P, 199), (Connector.P2P_NCCL, 199), (Connector.NIXL, 199), (Connector.EXAMPLE, 192)],
)
async def test_decode_takes_the_prompt_from_the_transfer(connector: Connector, external: int, tmp_path: Path) -> None:
    async with pair(connector, tmp_path) as (prefill, decode):
        await disaggregated(prefill, decode, prompt(200), max_tokens=4)

        assert await prefill.metric(f'{SOURCE}"local_compute"') == 200
        assert await decode.metric(f'{SOURCE}"external_kv_transfer"') == external
        assert await decode.metric(f'{SOURCE}"local_compute"') == 200 - external
        async with asyncio.timeout(20):
            while (sent := await prefill.books())["held"]:  # noqa: ASYNC110  a page has no event
                await asyncio.sleep(0.02)
        received = await decode.books()
        assert sent["sent"] == 1
        assert (received["received"], received["consumed"]) == (1, 1)
        assert (received["held"], received["waiting"]) == (0, 0)
        assert sent["sent_bytes"] == received["received_bytes"] > 0


@pytest.mark.parametrize("connector", Connector)
async def test_corrupted_kv_changes_the_tokens(connector: Connector, tmp_path: Path) -> None:
    plain = await combined_tokens(prompt(200), 12)

    async with pair(connector, tmp_path, corrupt=True) as (prefill, decode):
        first, answer = await disaggregated(prefill, decode, prompt(200), max_tokens=12)

    assert first.token_ids == plain[:1]
    assert answer.status == 200
    assert answer.token_ids != plain


# P2pConnector's names of KV hold a digest of the prompt, so that it never uses another prompt's.
@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.NIXL])
async def test_kv_of_another_prompt_changes_the_tokens(connector: Connector, tmp_path: Path) -> None:
    plain = await combined_tokens(prompt(200), 12)

    async with pair(connector, tmp_path) as (prefill, decode):
        request_id = pair_id(prefill, decode, "0") if connector is Connector.P2P_NCCL else None
        ask = {"kv_transfer_params": {"do_remote_decode": True}} if connector is Connector.NIXL else {}
        other = await prefill.complete(prompt(200, start=301), request_id=request_id, max_tokens=1, **ask)
        give = {"kv_transfer_params": params} if (params := other.body["kv_transfer_params"]) else {}
        answer = await decode.complete(prompt(200), request_id=request_id, max_tokens=12, **give)

    assert answer.token_ids != plain


@pytest.mark.parametrize("n", [1, 2])
async def test_batches_and_several_outputs_travel_under_their_own_ids(n: int, tmp_path: Path) -> None:
    prompts = [prompt(40), prompt(50, start=900)]
    async with running(settings_for(), fast_profile()) as combined, pair(Connector.P2P_NCCL, tmp_path) as (p, d):
        plain = await combined.complete(prompts, max_tokens=6, n=n)
        _, answer = await disaggregated(p, d, prompts, max_tokens=6, n=n)

        assert answer.body["choices"] == plain.body["choices"]
        assert (await d.books())["consumed"] == 2 * n


async def test_many_requests_at_once_keep_their_kv_apart(tmp_path: Path) -> None:
    async with running(settings_for(), fast_profile()) as combined, pair(Connector.P2P_NCCL, tmp_path) as (p, d):
        prompts = [prompt(30 + number, start=300 + number) for number in range(24)]

        async def both(number: int) -> tuple[list[int], list[int]]:
            _, answer = await disaggregated(p, d, prompts[number], unique=f"{number:032x}", max_tokens=6)
            return answer.token_ids, (await combined.complete(prompts[number], max_tokens=6)).token_ids

        results = await asyncio.gather(*map(both, range(24)))

        assert all(disagg == plain for disagg, plain in results)
        books = await d.books()
        assert (books["received"], books["consumed"], books["held"]) == (24, 24, 0)


@pytest.mark.parametrize("connector", Connector)
async def test_clients_that_leave_at_any_moment_leave_nothing_running(
    connector: Connector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair(connector, tmp_path) as (prefill, decode):
        room = asyncio.Semaphore(20)

        async def leave(number: int) -> None:
            async with room:
                request = disaggregated(
                    prefill, decode, prompt(number), unique=f"{number:032x}", max_tokens=30, stream=True
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(request, timeout=number / 1000)

        await asyncio.gather(*map(leave, range(1, 120)))

        for engine in (prefill, decode):
            await engine.until("vllm:num_requests_running", lambda count: count == 0)
            await engine.until("vllm:num_requests_waiting", lambda count: count == 0)
            books = await engine.books()
            assert books["waiting"] == 0
            if connector is Connector.P2P_NCCL:
                assert books["received"] == books["consumed"] + books["freed"] + books["held"]
        _, answer = await disaggregated(prefill, decode, prompt(200), unique="last", max_tokens=30)
        assert len(answer.token_ids) == 30
    assert [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []


async def test_the_prefilled_token_can_be_handed_to_the_client_and_the_rest_continued(tmp_path: Path) -> None:
    plain = await combined_tokens(prompt(100), 12)

    async with pair(Connector.P2P_NCCL, tmp_path) as (prefill, decode):
        request_id = pair_id(prefill, decode, "0")
        first = await prefill.complete(prompt(100), request_id=request_id, max_tokens=1)
        rest = await decode.complete([*prompt(100), *first.token_ids], request_id=request_id, max_tokens=11)

    assert first.token_ids + rest.token_ids == plain


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_p2p_engines_refuse_an_id_without_addresses(role: Role) -> None:
    async with running(settings_for(role, kv_connector=Connector.P2P_NCCL), fast_profile()) as engine:
        answer = await engine.complete(prompt(20), max_tokens=1)

        assert answer.status == 400
        assert "does not contain hostname and port" in answer.body["error"]["message"]
        assert (await engine.get("/health"))[0] == 200


async def test_missing_kv_makes_every_stream_of_a_p2p_decode_stand_still_until_it_comes(tmp_path: Path) -> None:
    async with pair(Connector.P2P_NCCL, tmp_path) as (prefill, decode):
        lively = pair_id(prefill, decode, "a")
        await prefill.complete(prompt(30), request_id=lively, max_tokens=1)
        stream = asyncio.create_task(decode.complete(prompt(30), request_id=lively, max_tokens=2000, stream=True))
        await decode.until("vllm:generation_tokens_total", lambda count: count >= 20)

        early = pair_id(prefill, decode, "b")
        stuck = asyncio.create_task(decode.complete(prompt(30), request_id=early, max_tokens=3))
        await decode.until("sim:kv_waiting", lambda count: count == 1)
        before = await decode.metric("vllm:generation_tokens_total")
        await asyncio.sleep(0.2)
        assert await decode.metric("vllm:generation_tokens_total") == before
        assert (await decode.get("/health"))[0] == 200

        await prefill.complete(prompt(30), request_id=early, max_tokens=1)

        assert len((await stuck).token_ids) == 3
        assert len((await stream).token_ids) == 2000


async def test_kv_whose_request_never_comes_stays_forever(tmp_path: Path) -> None:
    async with pair(Connector.P2P_NCCL, tmp_path) as (prefill, decode):
        await prefill.complete(prompt(30), request_id=pair_id(prefill, decode, "a"), max_tokens=1)

        books = await decode.books()

        assert (books["received"], books["consumed"], books["freed"], books["held"]) == (1, 0, 0, 1)


async def test_kv_that_its_request_never_used_is_freed_with_it(tmp_path: Path) -> None:
    async with pair(Connector.P2P_NCCL, tmp_path) as (prefill, decode):
        await disaggregated(prefill, decode, prompt(1), max_tokens=3)

        books = await decode.books()

        assert (books["received"], books["consumed"], books["freed"], books["held"]) == (1, 0, 1, 0)


async def test_a_p2p_prefill_stands_still_while_its_decode_cannot_be_reached(tmp_path: Path) -> None:
    async with running(settings_for(Role.PREFILL, kv_connector=Connector.P2P_NCCL), fast_profile()) as prefill:
        absent = settings_for(Role.DECODE, kv_connector=Connector.P2P_NCCL)
        request_id = f"___prefill_addr_x:1___decode_addr_127.0.0.1:{absent.listen_kv_port}_0"
        task = asyncio.create_task(prefill.complete(prompt(30), request_id=request_id, max_tokens=1))
        done, _ = await asyncio.wait([task], timeout=0.5)
        assert not done
        assert (await prefill.get("/health"))[0] == 200

        async with running(absent, fast_profile()):
            answer: Answer = await asyncio.wait_for(task, timeout=20)

    assert answer.status == 200


async def test_nixl_prefill_says_where_its_kv_is(tmp_path: Path) -> None:
    async with pair(Connector.NIXL, tmp_path) as (prefill, _):
        answer = await prefill.complete(
            prompt(33), max_tokens=1, request_id="r", kv_transfer_params={"do_remote_decode": True}
        )

        params = answer.body["kv_transfer_params"]
        assert params.pop("remote_engine_id")
        assert params == {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[1, 2, 3]],
            "remote_request_id": "cmpl-r-0",
            "remote_host": "127.0.0.1",
            "remote_port": prefill.settings.listen_kv_port,
            "tp_size": 1,
            "remote_num_tokens": 33,
        }
        assert (await prefill.books())["held"] == 1


async def test_nixl_kv_is_freed_when_its_lease_runs_out_and_decode_fails(tmp_path: Path) -> None:
    async with pair(Connector.NIXL, tmp_path, kv_lease_s=0.05) as (prefill, decode):
        first = await prefill.complete(prompt(33), max_tokens=1, kv_transfer_params={"do_remote_decode": True})
        await prefill.until("sim:kv_held", lambda count: count == 0)

        answer = await decode.complete(prompt(33), max_tokens=4, kv_transfer_params=first.body["kv_transfer_params"])

        books = await prefill.books()
        assert (books["expired"], books["freed"], books["held"], books["sent"]) == (1, 1, 0, 0)
        assert (answer.status, answer.body["error"]["type"]) == (500, "InternalServerError")


async def test_a_nixl_stream_whose_kv_cannot_be_had_ends_with_an_error_event(tmp_path: Path) -> None:
    async with pair(Connector.NIXL, tmp_path) as (prefill, decode):
        first = await prefill.complete(prompt(33), max_tokens=1, kv_transfer_params={"do_remote_decode": True})
        gone = {**first.body["kv_transfer_params"], "remote_request_id": "unknown"}

        answer = await decode.complete(prompt(33), max_tokens=4, stream=True, kv_transfer_params=gone)

        assert [chunk["error"]["code"] for chunk in answer.chunks] == [500]
        assert answer.done
        assert (await decode.complete(prompt(5), max_tokens=2)).status == 200


async def test_a_request_that_nixl_decode_refuses_gives_its_kv_back(tmp_path: Path) -> None:
    async with pair(Connector.NIXL, tmp_path) as (prefill, decode):
        first = await prefill.complete(prompt(33), max_tokens=1, kv_transfer_params={"do_remote_decode": True})

        refused = await decode.complete(prompt(33), max_tokens=0, kv_transfer_params=first.body["kv_transfer_params"])

        assert refused.status == 400
        await prefill.until("sim:kv_held", lambda count: count == 0)
        books = await prefill.books()
        assert (books["freed"], books["held"], books["expired"]) == (1, 0, 0)


async def test_an_engine_of_any_role_answers_nixl_requests_that_say_nothing_of_kv(tmp_path: Path) -> None:
    plain = await combined_tokens(prompt(33), 12)

    async with pair(Connector.NIXL, tmp_path) as (prefill, decode):
        for engine in (prefill, decode):
            answer = await engine.complete(prompt(33), max_tokens=12)
            assert answer.token_ids == plain
            assert answer.body["kv_transfer_params"] is None


async def test_with_the_shared_folder_decode_computes_what_is_not_there(tmp_path: Path) -> None:
    plain = await combined_tokens(prompt(200), 12)

    async with pair(Connector.EXAMPLE, tmp_path) as (prefill, decode):
        alone = await decode.complete(prompt(200), max_tokens=12)
        again = await prefill.complete(prompt(200), max_tokens=12)

        assert alone.token_ids == again.token_ids == plain
        assert await decode.metric(f'{SOURCE}"local_compute"') == 200
        assert await prefill.metric(f'{SOURCE}"external_kv_transfer"') == 192
        assert (await decode.books())["sent"] + (await prefill.books())["sent"] == 1
