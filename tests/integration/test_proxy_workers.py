"""A proxy of two processes on one port answers and counts like a single process, and survives the end of a worker."""

import asyncio
import shutil
import signal
import sys
from functools import partial

import pytest
from aiohttp import web
from support.aio import until
from support.crowd import text_of
from support.processes import process
from support.proxy import MODEL, Call, FakeEngine, RawClient, RunningProxy, generate, running_proxy
from support.simulator import fast_profile, running, settings_for
from support.workers import MANY, WORKERS, clients, listening, running_workers, series, spread, workers

from pd_contracts.names import Connector, Role
from pd_contracts.stats import ProxyStats
from pd_proxy.processes import worker_pool

TEXT = {"model": MODEL, "prompt": [1] * 100, "max_tokens": 4}
STREAM = TEXT | {"stream": True, "max_tokens": 1_000_000}
KV = {"kv_bytes_per_token": 10, "kv_in_flight_bytes": 2500}  # room for two of these prompts at each decode
MOVING = STREAM | {"max_tokens": 999_999}
ADMIN = {"Authorization": "Bearer secret"}


async def counted(proxy: RunningProxy) -> tuple[int, float]:
    """Requests as /stats and /metrics count them."""
    page = (await proxy.get("/metrics")).body
    return (await proxy.stats()).requests, sum(series(page, "pd_proxy_requests_total").values())


def restarted(stats: ProxyStats) -> bool:
    return stats.worker_restarts == 1


async def replaced(proxy: RunningProxy) -> None:
    """Wait until as many workers serve as there should be."""
    await until(lambda: len(listening(proxy)) == WORKERS, 30.0)


async def test_both_workers_serve_and_answer_as_a_single_process_does() -> None:
    prompts = [list(range(number, number + 20)) for number in range(MANY)]

    async def texts(proxy: RunningProxy) -> list[str]:
        """What simulated engines say to each prompt."""
        common = {"proxy_port": proxy.settings.proxy_port}
        async with (
            running(settings_for(Role.PREFILL, **common), fast_profile()),
            running(settings_for(Role.DECODE, **common), fast_profile()),
        ):
            await proxy.stats_where(lambda stats: stats.ready)
            bodies = [{"prompt": prompt, "max_tokens": 12, "stream": True, "ignore_eos": True} for prompt in prompts]
            return [text_of(reply) for reply in await asyncio.gather(*(proxy.post(body) for body in bodies))]

    async with running_proxy(ping_ttl_s=10.0) as proxy:
        alone = await texts(proxy)
    async with running_workers(ping_ttl_s=10.0) as proxy:
        assert await texts(proxy) == alone
    assert all(alone)


async def test_connections_are_spread_over_the_workers() -> None:
    async with running_workers() as proxy:
        engine = await proxy.engine(Role.COMBINED)
        await spread(proxy, STREAM)
        await until(lambda: len(engine.calls) == MANY)
        assert sum(clients(worker, proxy) for worker in workers()) >= MANY


async def test_the_bound_on_requests_holds_for_all_workers_together() -> None:
    async with running_workers(max_in_flight=MANY) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        await spread(proxy, STREAM)
        await until(lambda: len(engine.calls) == MANY)
        refused = await asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY)))
        assert {(reply.status, reply.error["code"]) for reply in refused} == {(429, "too_many_requests")}
        assert len(engine.calls) == MANY


async def test_the_bound_on_kv_holds_for_all_workers_together() -> None:
    on_the_way, most = 0, 0

    async def prefills(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        nonlocal on_the_way, most
        on_the_way += 1
        most = max(most, on_the_way)
        await asyncio.sleep(0.005)
        return await generate(engine, call, request)

    async def decodes(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        nonlocal on_the_way
        on_the_way -= 1
        return await generate(engine, call, request)

    async with running_workers(**KV) as proxy:
        prefill, decode = await proxy.pair()
        prefill.answer, decode.answer = prefills, decodes
        replies = await asyncio.gather(*(proxy.post(TEXT) for _ in range(4 * MANY)))
        assert {reply.status for reply in replies} == {200}
        assert most == 2
        assert {i.kv_bytes for i in (await proxy.settled()).instances} == {0}


async def test_least_loaded_counts_the_requests_of_all_workers() -> None:
    async with running_workers(policy="least_loaded") as proxy:
        engines = [await proxy.engine(Role.COMBINED, boot_id=f"boot-{number}") for number in range(2)]
        for sent in range(1, MANY + 1):
            await RawClient.send(proxy, STREAM)
            await until(partial(lambda all_: sum(len(engine.calls) for engine in engines) == all_, sent))
        assert [len(engine.calls) for engine in engines] == [MANY // 2, MANY // 2]


async def test_a_stalled_engine_gets_no_requests_from_any_worker() -> None:
    async with running_workers(decode_stall_timeout_s=0.5) as proxy:
        stuck, good = [await proxy.engine(Role.COMBINED, boot_id=f"boot-{number}") for number in range(2)]
        stuck.gate.clear()
        streams = await spread(proxy, STREAM)
        await proxy.state_of(stuck, "suspect")
        asked = len([call for call in stuck.calls if call.body["stream"]])
        assert 0 < asked < len(streams)
        assert {reply.status for reply in await asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY)))} == {200}
        assert not [call for call in stuck.calls if call.body["max_tokens"] == TEXT["max_tokens"]]
        assert len([call for call in stuck.calls if call.body["stream"]]) == asked
        await until(lambda: all(call.aborted for call in stuck.calls if call.body["stream"]))
        assert not any(call.aborted for call in good.calls)


async def test_an_engine_is_not_stuck_if_one_worker_sees_it_move() -> None:
    """Every worker but one has only streams that have stalled."""

    async def one_moves(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        if call.body["max_tokens"] == MOVING["max_tokens"]:
            return await generate(engine, call, request)
        await asyncio.sleep(60)
        raise AssertionError

    async with running_workers(decode_stall_timeout_s=0.4) as proxy:
        engine = await proxy.engine(Role.COMBINED, answer=one_moves)
        stuck = await spread(proxy, STREAM)
        moving = await RawClient.send(proxy, MOVING)
        for number in range(200):  # for several times the limit
            await moving.read_until(f"t{100 * number} ".encode())
            await asyncio.sleep(0.01)
        assert (await proxy.state_of(engine, "ready")).in_flight == len(stuck) + 1


async def test_drained_means_that_no_worker_sends_anything_any_more() -> None:
    async with running_workers(admin_key="secret") as proxy:
        drained, other = [await proxy.engine(Role.COMBINED, boot_id=f"boot-{number}") for number in range(2)]
        drained.gate.clear()
        other.gate.clear()
        waiting = [asyncio.create_task(proxy.post(TEXT)) for _ in range(MANY)]
        await until(lambda: len(drained.calls) + len(other.calls) == MANY)
        name = (await proxy.state_of(drained, "ready")).name
        reply = await proxy.post({}, f"/admin/instances/{name}/drain", **ADMIN)
        assert (reply.json["in_flight"], reply.json["drained"]) == (len(drained.calls), False)
        asked = len(drained.calls)
        drained.gate.set()
        other.gate.set()
        reply = await proxy.post({}, f"/admin/instances/{name}/drain?wait_s=10", **ADMIN)
        assert reply.json["drained"] is True
        replies = await asyncio.gather(*waiting, *(proxy.post(TEXT) for _ in range(MANY)))
        assert {one.status for one in replies} == {200}
        assert len(drained.calls) == asked


async def test_counts_are_the_sum_of_all_workers_and_survive_one() -> None:
    async with running_workers() as proxy:
        engine = await proxy.engine(Role.COMBINED)
        await asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY)))
        assert await counted(proxy) == (MANY, MANY)
        workers()[0].kill()
        await proxy.stats_where(restarted)
        assert await counted(proxy) == (MANY, MANY)
        await replaced(proxy)
        await asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY)))
        assert await counted(proxy) == (2 * MANY, 2 * MANY)
        page = (await proxy.get("/metrics")).body
        assert series(page, "pd_proxy_stage_seconds_count")['stage="decode"'] == 2 * MANY
        assert series(page, "pd_proxy_worker_restarts_total") == {"": 1.0}
        assert (await proxy.instance(engine)).requests == 2 * MANY  # type: ignore[union-attr]


async def test_kv_in_flight_of_a_killed_worker_is_consumed_and_its_room_released() -> None:
    async with running_workers(**KV | {"kv_in_flight_bytes": 1000 * MANY}) as proxy:
        prefill, decode = await proxy.pair()
        prefill.gate.clear()
        await spread(proxy, STREAM)
        await until(lambda: len(prefill.calls) == MANY)
        assert max(i.kv_bytes for i in (await proxy.stats()).instances) == 1000 * MANY
        asked = {call.engine_id for call in prefill.calls}
        for worker in workers():
            worker.kill()
        await replaced(proxy)
        stats = await proxy.stats_where(lambda stats: stats.worker_restarts == WORKERS)
        assert (stats.in_flight, stats.requests, stats.failures) == (0, MANY, MANY)
        assert {(i.kv_bytes, i.in_flight) for i in stats.instances if i.role is Role.DECODE} == {(0, 0)}
        prefill.gate.set()
        await proxy.paid()
        once_more = [call.engine_id for call in decode.calls if call.engine_id in asked]
        assert sorted(once_more) == sorted(asked)
        assert {call.body["max_tokens"] for call in decode.calls} == {1}


async def test_a_worker_killed_under_load_takes_only_its_own_clients_with_it() -> None:
    async with running_workers(ping_ttl_s=10.0, **KV | {"kv_in_flight_bytes": 100_000}) as proxy:
        common = {"proxy_port": proxy.settings.proxy_port, "kv_connector": Connector.P2P_NCCL}
        async with (
            running(settings_for(Role.PREFILL, **common), fast_profile(step_ms=2.0)) as prefill,
            running(settings_for(Role.DECODE, **common), fast_profile(step_ms=2.0)) as decode,
        ):
            await proxy.stats_where(lambda stats: stats.ready)
            victim, survivor = workers()
            body = {"prompt": list(range(40)), "max_tokens": 400, "stream": True, "ignore_eos": True}
            streams = await spread(proxy, body)
            cut, kept = clients(victim, proxy), clients(survivor, proxy)
            asking = [asyncio.create_task(proxy.post(body | {"max_tokens": 4})) for _ in range(4 * MANY)]
            victim.kill()
            ends = await asyncio.gather(*(stream.read_until(b"[DONE]") for stream in streams), return_exceptions=True)
            whole = [end for end in ends if isinstance(end, bytes)]
            assert len(whole) >= MANY - cut
            assert len(whole) >= 1
            assert kept >= 1
            await asyncio.gather(*asking, return_exceptions=True)
            await replaced(proxy)
            replies = await asyncio.gather(*(proxy.post(body | {"max_tokens": 4}) for _ in range(MANY)))
            assert {reply.status for reply in replies} == {200}
            await proxy.paid()
            assert {i.kv_bytes for i in (await proxy.stats()).instances} == {0}
            for engine in (prefill, decode):
                books = await engine.books()
                assert (books["held"], books["waiting"], books["leaked"]) == (0, 0, 0)


async def test_connections_that_wait_for_a_dead_worker_are_served_by_its_successor() -> None:
    async with running_workers() as proxy:
        await proxy.engine(Role.COMBINED)
        for worker in workers():
            worker.kill()
        replies = await asyncio.wait_for(asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY))), 60)
        assert {reply.status for reply in replies} == {200}


async def test_connections_given_to_a_worker_that_then_dies_are_served_by_another() -> None:
    async with running_workers(proxy_workers=3) as proxy:
        await proxy.engine(Role.COMBINED)
        silent, dying, _ = workers()
        silent.suspend()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        # From its second half on, connections that the kernel gives to the silent worker are given to the other two.
        await asyncio.sleep(1.0)
        dying.suspend()
        asking = asyncio.gather(*(proxy.post(TEXT) for _ in range(4 * MANY)))
        await asyncio.sleep(0.3)
        dying.kill()
        try:
            replies = await asyncio.wait_for(asking, 25)
        finally:
            silent.resume()
        assert {reply.status for reply in replies} == {200}
        assert loop.time() - begun < 25.0, "SILENT_S is thirty"


async def test_connections_given_to_a_worker_that_stalls_are_served_by_another() -> None:
    async with running_workers(proxy_workers=3) as proxy:
        await proxy.engine(Role.COMBINED)
        frozen = workers()[:2]
        frozen[0].suspend()
        await asyncio.sleep(1.0)
        frozen[1].suspend()
        try:
            replies = await asyncio.wait_for(asyncio.gather(*(proxy.post(TEXT) for _ in range(4 * MANY))), 15)
        finally:
            for worker in frozen:
                worker.resume()
        assert {reply.status for reply in replies} == {200}


async def test_a_worker_that_has_stalled_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "SILENT_S", 4)
    async with running_workers() as proxy:
        await proxy.engine(Role.COMBINED)
        frozen = workers()[0]
        frozen.suspend()
        await until(lambda: not frozen.is_running() and len(listening(proxy)) == WORKERS, 60.0)
        replies = await asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY)))
        assert {reply.status for reply in replies} == {200}


async def test_requests_about_the_whole_proxy_are_answered_alike_by_every_worker() -> None:
    async with running_workers(admin_key="secret") as proxy:
        engine = await proxy.engine(Role.COMBINED)
        for path, status in {
            f"/admitted?boot_id={engine.boot_id}": 200,
            "/admitted?boot_id=nobody": 503,
            "/admitted": 400,
            "/ready": 200,
            "/health": 200,
            "/v1/models": 200,
            "/admin/instances/nobody/drain": 405,
            "/admin/nothing": 404,
            "/nothing": 404,
        }.items():
            replies = await asyncio.gather(*(proxy.get(path) for _ in range(4)))
            assert {reply.status for reply in replies} == {status}, path
            assert len({reply.body for reply in replies}) == 1, path
        refused = await proxy.get("/admin/instances/nobody/drain")
        assert set(refused.headers["Allow"].split(", ")) >= {"POST", "DELETE"}


async def test_a_worker_that_cannot_start_ends_the_proxy_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(OSError, match="a worker ended before it served"):
        async with running_proxy(proxy_workers=WORKERS):
            pass


async def test_the_port_is_not_shared_with_another_proxy() -> None:
    async with running_workers() as proxy:
        with pytest.raises(OSError, match="in use"):
            async with running_proxy(proxy_workers=WORKERS, http_proxy_port=proxy.settings.http_proxy_port):
                pass


async def test_new_connections_do_not_wait_for_a_worker_that_has_stalled() -> None:
    async with running_workers() as proxy:
        await proxy.engine(Role.COMBINED)
        frozen = workers()[0]
        frozen.suspend()
        try:
            loop, took = asyncio.get_running_loop(), []
            for _ in range(3):
                begun = loop.time()
                replies = await asyncio.wait_for(asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY))), 25)
                took.append(loop.time() - begun)
                assert {reply.status for reply in replies} == {200}
            assert took[0] < 15.0, "SILENT_S is thirty"
            assert min(took[1:]) < 2.0
            assert (await proxy.stats()).worker_restarts == 0
        finally:
            frozen.resume()
        await until(lambda: clients(frozen, proxy) == 0)
        replies = await asyncio.gather(*(proxy.post(TEXT) for _ in range(MANY)))
        assert {reply.status for reply in replies} == {200}
        await until(lambda: len(listening(proxy)) == WORKERS)


async def test_a_parent_that_has_stalled_keeps_no_client_waiting_forever() -> None:
    async with process(drain_timeout_s=1, workers=WORKERS) as (proxy, child):
        await until(lambda: len(listening(proxy, child.pid)) == WORKERS, 30)
        child.send_signal(signal.SIGSTOP)
        try:
            reply = await asyncio.wait_for(proxy.get("/health"), 60)
        finally:
            child.send_signal(signal.SIGCONT)
        assert (reply.status, reply.error["type"]) == (504, "internal_server_error")
