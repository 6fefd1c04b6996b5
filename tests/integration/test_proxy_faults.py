"""Engines that fail, and what the client and the other engines get."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from support.aio import until
from support.proxy import (
    BODIES,
    STREAM,
    TEXT,
    Answer,
    Call,
    ClosesKept,
    FakeEngine,
    RawClient,
    RunningProxy,
    chunk,
    failing,
    generate,
    hang_up,
    running_proxy,
    start_stream,
)

from pd_contracts import sse
from pd_contracts.free_ports import free_ports
from pd_contracts.names import Connector, Role
from pd_proxy.kv.debts import TRIES


def first_then(tail: bytes, *, cut: bool = False) -> Answer:
    """A stream of one chunk and `tail`; `cut` drops the connection, otherwise the stream ends in order."""

    async def answer(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk(call, "t0 "))
        await asyncio.sleep(0.05)  # so that the two writes are read apart
        await response.write(tail)
        if cut and request.transport is not None:
            request.transport.abort()
        return response

    return answer


def refusing(status: int) -> Answer:
    """Refuse everything but a request for one token in one piece."""

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        if call.body["max_tokens"] == 1:
            return await generate(engine, call, request)
        return await failing(status, b'{"error":{"message":"no"}}')(engine, call, request)

    return answer


@pytest.mark.parametrize(
    ("answer", "status", "cause"),
    [
        (failing(500), 502, "refused"),
        (failing(503), 502, "refused"),
        (failing(429), 429, "refused"),
        (failing(302), 502, "refused"),
        (hang_up, 502, "disconnected"),
    ],
)
@BODIES
async def test_decode_never_hears_of_a_request_whose_prefill_failed(
    proxy: RunningProxy, body: dict[str, Any], answer: Answer, status: int, cause: str
) -> None:
    prefill, decode = await proxy.pair()
    prefill.answer = answer
    reply = await proxy.post(body)
    assert reply.status == status
    assert reply.error["message"]
    assert not decode.calls
    assert f'pd_proxy_failures_total{{cause="{cause}"}} 1.0' in (await proxy.get("/metrics")).body.decode()


async def test_an_engines_complaint_about_the_request_reaches_the_client_without_addresses(proxy: RunningProxy) -> None:
    prefill, _ = await proxy.pair()
    complaint = {
        "message": f"Request cmpl-___prefill_addr_{prefill.zmq_address}___decode_addr_10.0.0.9:1_ab at 10.0.0.9: too long",
        "type": "BadRequestError",
        "param": "prompt",
        "code": 400,
    }
    prefill.answer = failing(400, json.dumps({"error": complaint}).encode())
    reply = await proxy.post(TEXT)
    assert reply.status == 400
    assert reply.error == complaint | {"message": "Request [request] at [address]: too long"}


async def test_prefill_that_is_too_slow_ends_in_504_and_is_drained_when_it_is_done() -> None:
    async with running_proxy(prefill_timeout_s=0.3) as proxy:
        prefill, decode = await proxy.pair()
        prefill.gate.clear()
        reply = await proxy.post(TEXT)
        assert reply.status == 504
        assert not prefill.calls[0].aborted
        prefill.gate.set()
        await until(lambda: decode.calls and decode.calls[0].finished)
        assert decode.calls[0].body["max_tokens"] == 1
        assert decode.calls[0].engine_id == prefill.calls[0].engine_id


async def test_the_time_limit_of_prefill_is_not_decodes() -> None:
    async with running_proxy(prefill_timeout_s=0.3) as proxy:
        prefill, decode = await proxy.pair()
        decode.gate.clear()
        asking = asyncio.create_task(proxy.post(TEXT))
        await until(lambda: prefill.calls and prefill.calls[0].finished)
        await asyncio.sleep(0.5)
        decode.gate.set()
        assert (await asking).status == 200
        assert len(prefill.calls) == len(decode.calls) == 1


@pytest.mark.parametrize(
    ("connector", "status"),
    [(connector, 400) for connector in Connector] + [(Connector.NIXL, 500), (Connector.NIXL, 503)],
)
@BODIES
async def test_kv_that_decode_turned_down_is_drained_once(
    proxy: RunningProxy, body: dict[str, Any], connector: Connector, status: int
) -> None:
    drains = 0 if connector in (Connector.EXAMPLE, Connector.P2P) else 1
    _, decode = await proxy.pair(connector)
    decode.answer = refusing(status)
    reply = await proxy.post(body)
    assert reply.status == (status if status < 500 else 502)
    await until(lambda: len(decode.calls) == 1 + drains)
    await proxy.stats_where(lambda stats: stats.drained == drains)
    assert [call.engine_id for call in decode.calls] == [decode.calls[0].engine_id] * (1 + drains)
    for drain in decode.calls[1:]:
        assert (drain.body["stream"], drain.body["max_tokens"]) == (False, 1)
        assert drain.body.get("kv_transfer_params") == decode.calls[0].body.get("kv_transfer_params")


def asked_for(engine: FakeEngine, engine_id: str) -> list[Any]:
    """The prompts that came under an id."""
    return [call.body.get("prompt", call.body.get("messages")) for call in engine.calls if call.engine_id == engine_id]


@pytest.mark.parametrize("answer", [hang_up, failing(500), failing(503)], ids=["dies", "500", "503"])
@pytest.mark.parametrize("prompt", ["one two three", ["one", "two"]], ids=["one prompt", "two prompts"])
@BODIES
async def test_kv_that_decode_may_have_used_up_is_pushed_again_and_consumed_when_it_serves(
    proxy: RunningProxy, body: dict[str, Any], answer: Answer, prompt: Any
) -> None:
    prefill, decode = await proxy.pair()
    decode.answer = answer
    assert (await proxy.post(body | {"prompt": prompt})).status == 502
    old = decode.calls[0].engine_id
    await until(lambda: len(decode.calls) > 1)  # the probe of an engine that still fails
    assert asked_for(decode, old) == asked_for(prefill, old) == [prompt]
    decode.answer = None
    # all that failed is used up in the end, and only the probe that succeeded needed no second time
    await proxy.stats_where(lambda stats: stats.drained == len({call.engine_id for call in decode.calls}) - 1)
    ids = [call.engine_id for call in decode.calls]
    probes = [i for i in ids[1 : ids.index(old, 1)] if ids.count(i) == 1]
    assert len(probes) == 1, "one that succeeded went first, so what had come before it is over at the engine"
    first, last = asked_for(decode, old)
    assert asked_for(prefill, old) == [first, last], "asked for as often as pushed"
    assert first == prompt
    assert isinstance(last, str) or len(last) == len(prompt), "as many sequences, so the same ids within"
    assert all("seventeen" in text for text in ([last] if isinstance(last, str) else last))


async def test_a_decode_that_stays_away_is_not_bothered_about_old_kv(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    decode.answer, decode.health = hang_up, 500
    assert (await proxy.post(TEXT)).status == 502
    await proxy.state_of(decode, "joining")
    await asyncio.sleep(0.3)
    asked = len(prefill.calls), len(decode.calls)
    await asyncio.sleep(0.4)
    assert (len(prefill.calls), len(decode.calls)) == asked
    decode.answer, decode.health = None, 200
    await proxy.stats_where(lambda stats: stats.drained >= 1)


async def test_old_kv_that_an_engine_never_takes_is_given_up(proxy: RunningProxy) -> None:
    _, decode = await proxy.pair()

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        if call.engine_id == decode.calls[0].engine_id:
            return await hang_up(engine, call, request)
        return await generate(engine, call, request)

    decode.answer = answer
    assert (await proxy.post(TEXT)).status == 502
    await until(lambda: len(asked_for(decode, decode.calls[0].engine_id)) == 1 + TRIES)
    await asyncio.sleep(0.3)
    assert len(asked_for(decode, decode.calls[0].engine_id)) == 1 + TRIES
    assert b'pd_proxy_drains_total{result="failed"} 1.0' in (await proxy.get("/metrics")).body


async def test_kv_goes_with_the_process_that_had_it(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    decode.answer = hang_up
    assert (await proxy.post(TEXT)).status == 502
    decode.answer, decode.boot_id, (decode.kv_port,) = None, "boot-2", free_ports(1)
    await proxy.state_of(decode, "ready")
    assert (await proxy.post(TEXT)).status == 200
    await proxy.settled()
    asked = len(prefill.calls)
    await asyncio.sleep(0.3)
    assert len(prefill.calls) == asked, "nothing is pushed to an address that nobody has"


async def test_an_engine_that_refuses_connections_is_taken_out_at_once() -> None:
    async with running_proxy(health_interval_s=30.0) as proxy:
        async with FakeEngine(Role.COMBINED).running(proxy.settings.proxy_port) as engine:
            await proxy.state_of(engine, "ready")
        reply = await proxy.post(TEXT)
        assert reply.status == 502
        assert "combined-0" in reply.error["message"]
        assert (await proxy.get("/ready")).status == 503


NOTHING = [
    b"",
    b"  ",
    b"[]",
    b"{broken",
    b"data: nonsense",
    b"data: [DONE]\n\n",
    b'{"choices":[ ]}',
    b'{"choices":null}',
]


@pytest.mark.parametrize("answered", [*NOTHING, b'{"error":{"message":"no"},"choices":[{"text":""}]}'])
@BODIES
async def test_a_200_with_nothing_in_it_is_a_502(proxy: RunningProxy, body: dict[str, Any], answered: bytes) -> None:
    _, decode = await proxy.pair()
    decode.answer = failing(200, answered)
    reply = await proxy.post(body)
    assert reply.status == 502
    assert reply.error["code"] == "bad_gateway"


async def test_an_error_in_the_first_event_still_gets_a_status(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    engine.answer = failing(
        200, b'data: {"error":{"message":"prompt too long","type":"BadRequestError","code":400}}\n\n'
    )
    reply = await proxy.post(STREAM)
    assert reply.status == 400
    assert reply.error["message"] == "prompt too long"


async def test_kv_that_decode_has_consumed_is_not_asked_for_again(proxy: RunningProxy) -> None:
    _, decode = await proxy.pair()
    decode.answer = failing(200, b'data: {"error":{"message":"x","code":500}}\n\n')
    assert (await proxy.post(STREAM)).status == 502
    await asyncio.sleep(0.1)
    assert len(decode.calls) == 1


@pytest.mark.parametrize("role", [Role.DECODE, Role.COMBINED])
@pytest.mark.parametrize(
    ("tail", "cut"), [(b"", False), (b"", True), (b'data: {"id":', True), (b'data: {"id":', False)]
)
async def test_a_stream_that_breaks_off_ends_in_an_error_event_without_end_mark(
    proxy: RunningProxy, role: Role, tail: bytes, cut: bool
) -> None:
    await proxy.engine(Role.PREFILL)
    await proxy.engine(role, answer=first_then(tail, cut=cut))
    reply = await proxy.post(STREAM)
    assert reply.status == 200
    assert json.loads(reply.events[0])["choices"][0]["text"] == "t0 "
    error = json.loads(reply.events[1])["error"]
    assert error["message"] == f"{role}-0 closed the connection before its answer was complete"
    assert len(reply.events) == 2
    assert (await proxy.stats()).failures == 1


async def test_a_stream_of_broken_events_ends_in_an_error_event(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED, answer=first_then(b'data: {"kv_transfer_params":{"host":"10.0.0.5"\n\n'))
    reply = await proxy.post(STREAM)
    assert b"10.0.0.5" not in reply.body
    assert "not valid JSON" in json.loads(reply.events[-1])["error"]["message"]


async def test_an_engines_own_error_event_is_counted_as_a_failure(proxy: RunningProxy) -> None:
    await proxy.engine(
        Role.COMBINED, answer=first_then(b'data: {"error":{"message":"x","code":500}}\n\ndata: [DONE]\n\n')
    )
    reply = await proxy.post(STREAM)
    assert reply.events[-1] == sse.DONE
    assert (await proxy.stats()).failures == 1


@pytest.fixture(name="watchful")
async def _watchful() -> AsyncIterator[RunningProxy]:
    """A proxy that soon loses patience."""
    async with running_proxy(decode_stall_timeout_s=0.4) as proxy:
        yield proxy


@pytest.mark.parametrize("role", [Role.DECODE, Role.COMBINED])
async def test_an_engine_whose_streams_stand_still_is_suspect_until_a_probe_succeeds(
    watchful: RunningProxy, role: Role
) -> None:
    await watchful.engine(Role.PREFILL)
    engine = await watchful.engine(role)
    streams = [await RawClient.send(watchful, STREAM | {"max_tokens": 1000000}) for _ in range(2)]
    for stream in streams:
        await stream.read_until(b"t0 ")
    engine.gate.clear()
    for stream in streams:
        await stream.read_until(b'"engine_stalled"')
    suspect = await watchful.state_of(engine, "suspect")
    assert "no stream moved" in suspect.reason
    assert (await watchful.get("/ready")).status == 503
    assert (await watchful.post(TEXT)).status == 503
    assert all(call.aborted for call in engine.calls[:2])
    engine.gate.set()
    await watchful.state_of(engine, "ready")
    assert (await watchful.post(TEXT)).status == 200


async def test_a_suspect_engine_that_restarts_is_readmitted(watchful: RunningProxy) -> None:
    engine = await watchful.engine(Role.COMBINED)
    engine.gate.clear()
    assert (await watchful.post(STREAM)).status == 504
    await watchful.state_of(engine, "suspect")
    engine.boot_id = "boot-2"
    await watchful.state_of(engine, "ready")


async def test_one_moving_stream_shows_that_the_engine_works_for_those_in_the_queue(watchful: RunningProxy) -> None:
    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        if call.body["max_tokens"] == 1:
            await engine.gate.wait()
        for number in range(10):
            await response.write(chunk(call, f"t{number} "))
            await asyncio.sleep(0 if call.body["max_tokens"] == 1 else 0.1)
        await response.write(sse.encode_event(sse.DONE))
        return response

    engine = await watchful.engine(Role.COMBINED, answer=answer)
    engine.gate.clear()
    queued = asyncio.create_task(watchful.post(STREAM | {"max_tokens": 1}))
    moving = await watchful.post(STREAM)
    assert moving.events[-1] == sse.DONE
    engine.gate.set()
    assert (await queued).events[-1] == sse.DONE
    assert (await watchful.state_of(engine, "ready")).failures == 0


async def test_a_long_answer_without_streaming_is_no_stall(watchful: RunningProxy) -> None:
    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        if call.body["max_tokens"] > 1:
            await asyncio.sleep(1.0)
        return await generate(engine, call, request)

    engine = await watchful.engine(Role.COMBINED, answer=answer)
    assert (await watchful.post(TEXT)).status == 200
    assert any("seventeen" in call.body["prompt"] for call in engine.calls), "a probe vouched for it"
    assert (await watchful.state_of(engine, "ready")).failures == 0


async def test_a_probe_that_meets_a_kept_connection_as_it_is_closed_says_nothing(watchful: RunningProxy) -> None:
    closer = ClosesKept()

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        if call.body["prompt"] != "slow":
            return await closer(engine, call, request)
        closer.closes = True  # under the probe
        await asyncio.sleep(1.0)
        return await generate(engine, call, request)

    engine = await watchful.engine(Role.COMBINED, answer=answer)
    await asyncio.gather(*(watchful.post(TEXT) for _ in range(2)))
    assert (await watchful.post(TEXT | {"prompt": "slow"})).status == 200
    assert not closer.closes
    assert (await watchful.state_of(engine, "ready")).failures == 0


async def test_a_stall_of_answers_without_streaming_is_found_by_a_probe(watchful: RunningProxy) -> None:
    prefill, decode = await watchful.pair()
    decode.gate.clear()
    reply = await watchful.post(TEXT)
    assert reply.status == 504
    assert reply.error["code"] == "engine_stalled"
    assert "probe" in (await watchful.state_of(decode, "suspect")).reason
    decode.gate.set()
    await watchful.state_of(decode, "ready")
    assert not any(call.aborted for call in prefill.calls)


async def test_a_prefill_that_has_stalled_is_suspect_but_what_it_has_is_not_cancelled() -> None:
    async with running_proxy(prefill_timeout_s=0.3) as proxy:
        prefill, decode = await proxy.pair()
        prefill.gate.clear()
        assert (await proxy.post(TEXT)).status == 504
        await proxy.state_of(prefill, "suspect")
        assert not prefill.calls[0].aborted
        prefill.gate.set()
        await proxy.state_of(prefill, "ready")
        await until(lambda: any(c.engine_id == prefill.calls[0].engine_id and c.finished for c in decode.calls))


async def test_a_slow_client_does_not_make_its_engine_suspect(watchful: RunningProxy) -> None:
    written = 0

    async def answer(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = await start_stream(request)
        while True:
            await response.write(chunk(call, "x" * 100_000))
            written += 1

    engine = await watchful.engine(Role.COMBINED, answer=answer)
    client = await RawClient.send(watchful, STREAM, buffer_bytes=1024)
    before = 0
    while not before or before != written:  # until nothing moves, because the client does not read
        before = written
        await asyncio.sleep(0.7)
    assert (await watchful.state_of(engine, "ready")).in_flight == 1
    await client.leave()


async def test_streams_of_a_restarted_engine_are_told(proxy: RunningProxy) -> None:
    _, decode = await proxy.pair()
    stream = await RawClient.send(proxy, STREAM | {"max_tokens": 1000000})
    await stream.read_until(b"t0 ")
    decode.gate.clear()
    decode.boot_id = "boot-2"
    await stream.read_until(b'"engine_restarted"')


async def test_decode_that_restarts_while_prefill_runs_is_not_asked_for_kv_it_never_got(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    prefill.gate.clear()
    reply = asyncio.create_task(proxy.post(TEXT))
    await until(lambda: prefill.calls)
    decode.boot_id = "boot-2"
    await proxy.state_of(decode, "ready")
    prefill.gate.set()
    assert (await reply).status == 200, "saved by a prefill of its own for the new process"
    assert [call.engine_id for call in decode.calls] == [prefill.calls[1].engine_id]


async def test_a_decode_that_stalls_while_prefill_runs_gets_only_the_drain(
    watchful: RunningProxy,
) -> None:
    prefill, decode = await watchful.pair()
    stream = await RawClient.send(watchful, STREAM | {"max_tokens": 1000000})
    await stream.read_until(b"t0 ")
    prefill.gate.clear()
    reply = asyncio.create_task(watchful.post(TEXT))
    await until(lambda: len(prefill.calls) == 2)
    decode.gate.clear()
    await watchful.state_of(decode, "suspect")
    prefill.gate.set()
    assert (await reply).status == 503
    decode.gate.set()
    await until(lambda: any(c.engine_id == prefill.calls[1].engine_id and c.finished for c in decode.calls))
