"""What clients get without faults, for every connector and for combined engines."""

import asyncio
import json
import re
from typing import Any

import pytest
from aiohttp import web
from support.aio import until
from support.proxy import (
    MODEL,
    TEXT,
    Call,
    FakeEngine,
    RunningProxy,
    chunk,
    generate,
    running_proxy,
    start_stream,
)

from pd_contracts import sse, timing
from pd_contracts.names import Connector, Role

P2P_ID = re.compile(r"___prefill_addr_(.*):(\d+)___decode_addr_(.*):(\d+)_[0-9a-f]{32}")
PUBLIC_ID = re.compile(r"(?:chat)?cmpl-[0-9a-f]{32}")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 4}
ENDPOINTS = pytest.mark.parametrize(("path", "body"), [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)])
CONNECTORS = pytest.mark.parametrize("connector", list(Connector))


def text_of(events: list[str]) -> str:
    """What the model says in a stream's events."""
    choices = [json.loads(event)["choices"][0] for event in events if event != sse.DONE]
    return "".join(choice["text"] if "text" in choice else choice["delta"]["content"] for choice in choices)


@CONNECTORS
@ENDPOINTS
async def test_a_pair_answers_in_one_piece(
    proxy: RunningProxy, connector: Connector, path: str, body: dict[str, Any]
) -> None:
    prefill, decode = await proxy.pair(connector)
    reply = await proxy.post(body, path)
    assert reply.status == 200
    assert PUBLIC_ID.fullmatch(reply.json["id"])
    assert b"t0 t1 t2 t3" in reply.body
    assert "kv_transfer_params" not in reply.json
    assert b"127.0.0.1" not in reply.body
    assert reply.headers["Content-Type"] == "application/json"
    assert [call.path for call in prefill.calls + decode.calls] == [path, path]


@CONNECTORS
@ENDPOINTS
async def test_a_pair_answers_as_a_stream(
    proxy: RunningProxy, connector: Connector, path: str, body: dict[str, Any]
) -> None:
    prefill, decode = await proxy.pair(connector)
    reply = await proxy.post(body | {"stream": True, "stream_options": {"include_usage": True}}, path)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert text_of(reply.events) == "t0 t1 t2 t3 "
    assert reply.events[-1] == sse.DONE
    ids = {json.loads(event)["id"] for event in reply.events[:-1]}
    assert len(ids) == 1
    assert PUBLIC_ID.fullmatch(ids.pop())
    assert b"127.0.0.1" not in reply.body
    assert decode.calls[0].body["stream"] is True
    assert prefill.calls[0].body["stream"] is False
    assert "stream_options" not in prefill.calls[0].body


@pytest.mark.parametrize("stream", [False, True])
@ENDPOINTS
async def test_a_combined_engine_gets_the_request_as_it_is(
    proxy: RunningProxy, stream: bool, path: str, body: dict[str, Any]
) -> None:
    engine = await proxy.engine(Role.COMBINED)
    reply = await proxy.post(body | {"stream": stream}, path)
    assert reply.status == 200
    assert b"t0" in reply.body
    assert b"t3" in reply.body
    assert [call.body for call in engine.calls] == [body | {"stream": stream}]


async def test_p2p_gives_both_engines_the_same_id_with_both_kv_addresses(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    await proxy.post(CHAT | {"max_tokens": 9, "min_tokens": 2}, "/v1/chat/completions")
    (first,), (second,) = prefill.calls, decode.calls
    assert first.engine_id == second.engine_id
    found = P2P_ID.fullmatch(first.engine_id)
    assert found is not None
    assert found.groups() == ("127.0.0.1", str(prefill.kv_port), "127.0.0.1", str(decode.kv_port))
    assert (first.body["max_tokens"], first.body["max_completion_tokens"]) == (1, 1)
    assert "min_tokens" not in first.body
    assert second.body == CHAT | {"max_tokens": 9, "min_tokens": 2, "stream": False}


async def test_ids_are_never_used_twice(proxy: RunningProxy) -> None:
    prefill, _ = await proxy.pair()
    for _ in range(3):
        await proxy.post(TEXT)
    assert len({call.engine_id for call in prefill.calls}) == 3


async def test_nixl_hands_over_what_prefill_returns(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair(Connector.NIXL)
    await proxy.post(TEXT)
    assert prefill.calls[0].body["kv_transfer_params"]["do_remote_decode"] is True
    assert decode.calls[0].body["kv_transfer_params"] == {
        "do_remote_prefill": True,
        "remote_host": "10.1.2.3",
        "remote_block_ids": [1, 2],
        "tp_size": 1,
    }


async def test_example_sends_the_same_prompt_twice(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair(Connector.EXAMPLE)
    await proxy.post(TEXT)
    assert prefill.calls[0].body == TEXT | {"max_tokens": 1, "stream": False}
    assert decode.calls[0].body == TEXT | {"stream": False}


async def test_pings_without_a_connector_mean_the_configured_one() -> None:
    async with running_proxy(kv_connector=Connector.NIXL) as proxy:
        prefill = await proxy.engine(Role.PREFILL, None)
        await proxy.engine(Role.DECODE, None)
        await proxy.post(TEXT)
        assert "kv_transfer_params" in prefill.calls[0].body


async def test_p2p_prefill_gets_every_sequence(proxy: RunningProxy) -> None:
    prefill, _ = await proxy.pair()
    await proxy.post({"model": MODEL, "prompt": ["a", "b"], "n": 3, "max_tokens": 4})
    assert prefill.calls[0].body["prompt"] == ["a", "b"]
    assert prefill.calls[0].body["n"] == 3


@pytest.mark.parametrize("extra", [{"n": 2}, {"prompt": ["a", "b"]}, {"prompt": [[1, 2], [3]]}])
async def test_nixl_leaves_several_sequences_to_a_combined_engine(proxy: RunningProxy, extra: dict[str, Any]) -> None:
    prefill, _ = await proxy.pair(Connector.NIXL)
    refused = await proxy.post(TEXT | extra)
    assert refused.status == 400
    assert "NixlConnector" in refused.error["message"]
    combined = await proxy.engine(Role.COMBINED)
    assert (await proxy.post(TEXT | extra)).status == 200
    assert len(combined.calls) == 1
    assert not prefill.calls


@pytest.mark.parametrize(
    "extra", [{"echo": True}, {"prompt_logprobs": 1}, {"use_beam_search": True}, {"suffix": "end"}]
)
async def test_what_cannot_be_shared_goes_to_a_combined_engine_or_nowhere(
    proxy: RunningProxy, extra: dict[str, Any]
) -> None:
    prefill, decode = await proxy.pair()
    refused = await proxy.post(TEXT | extra)
    assert refused.status == 400
    assert next(iter(extra)) in refused.error["message"]
    combined = await proxy.engine(Role.COMBINED)
    assert (await proxy.post(TEXT | extra)).status == 200
    assert len(combined.calls) == 1
    assert not prefill.calls + decode.calls


async def test_pairs_come_before_combined_engines(proxy: RunningProxy) -> None:
    combined = await proxy.engine(Role.COMBINED)
    await proxy.post(TEXT)
    prefill, _ = await proxy.pair()
    await proxy.post(TEXT)
    assert (len(combined.calls), len(prefill.calls)) == (1, 1)


async def test_requests_take_turns_over_all_engines(proxy: RunningProxy) -> None:
    engines = [await proxy.engine(role, boot_id=f"b{i}") for role in (Role.PREFILL, Role.DECODE) for i in range(2)]
    for _ in range(8):
        await proxy.post(TEXT)
    assert [len(engine.calls) for engine in engines] == [4, 4, 4, 4]


async def test_a_client_cannot_set_ids_or_transfer_parameters(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    evil = {"request_id": "x", "kv_transfer_params": {"remote_host": "evil"}}
    reply = await proxy.post(TEXT | evil, **{"X-Request-Id": "mine:8000", "Authorization": "Bearer secret"})
    assert reply.headers["X-Request-Id"] == "mine:8000"
    for call in prefill.calls + decode.calls:
        assert not evil.keys() & call.body.keys()
        assert "mine" not in call.engine_id
        assert "Authorization" not in call.headers


async def test_without_an_id_of_its_own_a_client_gets_the_answers_id(proxy: RunningProxy) -> None:
    await proxy.pair()
    reply = await proxy.post(TEXT)
    assert reply.json["id"] == f"cmpl-{reply.headers['X-Request-Id']}"


async def test_no_header_of_an_engine_reaches_the_client(proxy: RunningProxy) -> None:
    async def answer(_engine: FakeEngine, _call: Call, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"id": "x"}, headers={"X-Engine": "10.0.0.5", "Set-Cookie": "a=b", "Server": "vllm"})

    await proxy.engine(Role.COMBINED, answer=answer)
    reply = await proxy.post(TEXT)
    assert not {"X-Engine", "Set-Cookie", "Server"} & set(reply.headers)


async def test_transfer_parameters_and_addresses_in_stream_events_are_removed(proxy: RunningProxy) -> None:
    async def answer(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk(call, 'a "kv_transfer_params" \n data: [DONE]'))
        last = {"id": f"cmpl-{call.engine_id}", "choices": [{"text": ""}], "kv_transfer_params": {"host": "10.0.0.5"}}
        await response.write(sse.encode_event(json.dumps(last)))
        await response.write(sse.encode_event(json.dumps({"error": {"message": "lost 10.0.0.5:8000", "code": 500}})))
        await response.write(sse.encode_event(sse.DONE))
        return response

    await proxy.engine(Role.PREFILL)
    await proxy.engine(Role.DECODE, answer=answer)
    reply = await proxy.post(TEXT | {"stream": True})
    assert b"10.0.0.5" not in reply.body
    assert json.loads(reply.events[0])["choices"][0]["text"] == 'a "kv_transfer_params" \n data: [DONE]'
    assert "kv_transfer_params" not in json.loads(reply.events[1])
    assert json.loads(reply.events[2])["error"]["message"] == "lost [address]"
    assert reply.events[3] == sse.DONE


async def test_timing_comes_right_before_the_end_mark(proxy: RunningProxy) -> None:
    await proxy.pair()
    reply = await proxy.post(TEXT | {"stream": True}, **{"X-PD-Timing": "1"})
    comment, done = reply.items[-2:]
    assert done == sse.Event(sse.DONE)
    assert isinstance(comment, sse.Comment)
    stages = timing.decode(comment.text)
    assert stages is not None
    assert (stages.prefill_instance, stages.decode_instance, stages.retries) == ("prefill-0", "decode-0", 0)
    assert stages.prefill > 0
    assert stages.kv_and_first_decode > 0


async def test_timing_of_an_answer_in_one_piece_is_a_header(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED)
    reply = await proxy.post(TEXT, **{"X-PD-Timing": "1"})
    stages = timing.decode(reply.headers["X-PD-Timing"])
    assert stages is not None
    assert (stages.prefill, stages.prefill_instance, stages.decode_instance) == (0, "", "combined-0")


@pytest.mark.parametrize("stream", [False, True])
async def test_connections_to_engines_are_used_again(proxy: RunningProxy, stream: bool) -> None:
    ports = set()

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        response = await generate(engine, call, request)
        await asyncio.sleep(0.02)  # uvicorn, too, ends a stream some time after its last event
        return response

    engine = await proxy.engine(Role.COMBINED, answer=answer)
    for _ in range(5):
        await proxy.post(TEXT | {"stream": stream})
        await proxy.settled()
    assert len(engine.calls) == 5
    assert len(ports) <= 2, "a health check may hold one of two"


async def test_timing_is_sent_only_if_asked_for(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED)
    assert "X-PD-Timing" not in (await proxy.post(TEXT)).headers
    assert b"pd-timing" not in (await proxy.post(TEXT | {"stream": True})).body


async def test_models_are_the_engines_own(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED, models=["one", "two"])
    reply = (await proxy.get("/v1/models")).json
    assert reply["object"] == "list"
    assert [(model["id"], model["root"]) for model in reply["data"]] == [("one", "/models/one"), ("two", "/models/two")]


async def test_metrics_and_stats_count_what_happened(proxy: RunningProxy) -> None:
    await proxy.pair()
    await proxy.post(TEXT)
    await proxy.post(b"{")
    await until(lambda: True)
    stats = await proxy.stats()
    assert (stats.requests, stats.failures, stats.in_flight, stats.policy) == (2, 0, 0, "round_robin")
    assert [(i.name, i.requests, i.failures, i.in_flight) for i in stats.instances] == [
        ("prefill-0", 1, 0, 0),
        ("decode-0", 1, 0, 0),
    ]
    metrics = (await proxy.get("/metrics")).body.decode()
    assert 'pd_proxy_requests_total{endpoint="/v1/completions",status="200"} 1.0' in metrics
    assert 'pd_proxy_failures_total{cause="bad_request"} 1.0' in metrics
    assert 'pd_proxy_stage_seconds_count{stage="prefill"} 1.0' in metrics
    assert 'pd_proxy_instances{role="decode",state="ready"} 1.0' in metrics


async def test_neither_stats_nor_ready_show_addresses(proxy: RunningProxy) -> None:
    await proxy.pair()
    for path in ("/stats", "/ready", "/metrics", "/health", "/version"):
        assert b"127.0.0.1" not in (await proxy.get(path)).body


async def test_traceparent_goes_on_to_engines(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await proxy.post(TEXT, traceparent=trace)
    assert [call.headers["traceparent"] for call in prefill.calls + decode.calls] == [trace, trace]
