"""HTTP as clients' libraries, browsers and tools speak it, through both servers that a request may come to."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.aio import until
from support.proxy import BODIES, MODEL, TEXT, RawClient, Reply, RunningProxy, failing, running_proxy
from support.workers import running_workers

from pd_contracts.names import Connector, Role

PAGE = "http://localhost:3000"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
# What only Hypercorn reads, and what the socket in front of it serves itself.
SERVERS = pytest.mark.parametrize("query", ["?api-version=1", ""], ids=["hypercorn", "front"])


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as proxy:
        yield proxy


async def options(proxy: RunningProxy, path: str, headers: dict[str, str]) -> Reply:
    async with proxy.session.options(proxy.url + path, headers=headers) as response:
        return Reply(response.status, response.headers.copy(), await response.read())


@SERVERS
async def test_a_slash_at_the_end_changes_nothing(proxy: RunningProxy, query: str) -> None:
    await proxy.pair()
    assert (await proxy.post(TEXT, f"/v1/completions/{query}")).json["choices"]
    for path in ("/v1/models/", "/health/", "/stats/", "/metrics/"):
        assert (await proxy.get(path)).status == 200, path
    assert (await proxy.get("/")).status == 404
    assert (await proxy.post(TEXT, "/v1/completions//nothing")).status == 404


async def test_a_slash_too_many_changes_nothing_and_redirects_nobody(proxy: RunningProxy) -> None:
    await proxy.pair()
    for path in ("/v1//completions", "//v1/completions", "/v1///completions//"):
        async with proxy.session.post(proxy.url + path, json=TEXT, allow_redirects=False) as response:
            assert (await response.json())["choices"], path
    async with proxy.session.get(proxy.url + "/v1//models", allow_redirects=False) as response:
        assert (await response.json())["data"]


async def test_a_whole_url_is_a_path_like_any_other(proxy: RunningProxy) -> None:
    await proxy.pair()
    client = await RawClient.send(proxy, TEXT, "http://x/v1/completions")
    assert b" 200 " in await client.read_until(b"\r\n")
    client = await RawClient.send(proxy, TEXT, "http://x/v1//completions/")
    assert b" 200 " in await client.read_until(b"\r\n")


@SERVERS
async def test_a_byte_order_mark_is_no_part_of_the_body(proxy: RunningProxy, query: str) -> None:
    prefill, decode = await proxy.pair()
    reply = await proxy.post(b"\xef\xbb\xbf" + json.dumps(TEXT).encode(), f"/v1/completions{query}")
    assert reply.status == 200
    assert prefill.calls[0].body["prompt"] == decode.calls[0].body["prompt"] == TEXT["prompt"]


@SERVERS
async def test_bytes_that_are_no_text_are_refused_wherever_they_stand(proxy: RunningProxy, query: str) -> None:
    engine = await proxy.engine(Role.COMBINED)
    for body in (b'{"prompt":"x","stop":"\xff"}', b'{"prompt":"\xff"}', b'{"prompt":"x","a\xff":1}'):
        reply = await proxy.post(body, f"/v1/completions{query}")
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
        assert "not valid JSON" in reply.error["message"]
    assert not engine.calls
    assert (await proxy.stats()).failures == 0


@SERVERS
@BODIES
async def test_what_engines_use_of_clients_headers_is_passed_on(
    proxy: RunningProxy, body: dict[str, Any], query: str
) -> None:
    prefill, decode = await proxy.pair()
    sent = {"X-Session-ID": "s-1", "X-vLLM-Priority": "3", "traceparent": "00-1-2-01", "X-Other": "o", "Cookie": "c=1"}
    assert (await proxy.post(body, f"/v1/completions{query}", **sent)).status == 200
    for engine in (prefill, decode):
        [call] = engine.calls
        found = {name: call.headers.get(name) for name in sent}
        assert found == {**sent, "X-Other": None, "Cookie": None}


async def test_other_headers_are_passed_on_if_the_setting_says_so() -> None:
    async with running_proxy(passed_headers=("x-other",)) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        await proxy.post(TEXT, **{"X-Other": "o", "X-Session-ID": "s-1"})
        [call] = engine.calls
        assert call.headers["X-Other"] == "o"
        assert "X-Session-ID" not in call.headers


@BODIES
async def test_the_client_gets_the_engines_retry_after(proxy: RunningProxy, body: dict[str, Any]) -> None:
    await proxy.engine(Role.COMBINED, answer=failing(503, b'{"error":"busy"}', headers={"Retry-After": "17"}))
    reply = await proxy.post(body)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "17")
    assert reply.error["code"] == "overloaded"
    assert reply.error["message"] == "combined-0 answered 503"


@BODIES
async def test_the_client_gets_the_retry_after_of_an_engines_429(proxy: RunningProxy, body: dict[str, Any]) -> None:
    await proxy.engine(Role.COMBINED, answer=failing(429, b'{"error":"busy"}', headers={"Retry-After": "17"}))
    reply = await proxy.post(body)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "17")


async def test_another_engine_is_asked_before_the_client_gets_retry_after(proxy: RunningProxy) -> None:
    busy = failing(503, headers={"Retry-After": "17"})
    await proxy.engine(Role.COMBINED, answer=busy, boot_id="busy")
    await proxy.engine(Role.COMBINED, boot_id="free")
    assert [(await proxy.post(TEXT)).status for _ in range(4)] == [200] * 4
    assert (await proxy.stats()).retries > 0


async def test_a_503_without_a_time_is_the_proxys_to_answer_for(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED, answer=failing(503, headers={"Retry-After": "soon; or later"}))
    reply = await proxy.post(TEXT)
    assert reply.status == 502
    assert "Retry-After" not in reply.headers


async def test_a_model_by_its_name(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED, models=[MODEL, "meta/llama"])
    for name in (MODEL, "meta/llama"):
        assert (await proxy.get(f"/v1/models/{name}")).json["id"] == name
    reply = await proxy.get("/v1/models/other")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_ping_and_load_answer_as_engines_do(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    assert (await proxy.get("/ping")).status == 200
    assert (await proxy.get("/load")).json == {"server_load": 0}
    engine.gate.clear()
    asked = asyncio.create_task(proxy.post(TEXT))
    await until(lambda: engine.calls)
    assert (await proxy.get("/load")).json == {"server_load": 1}
    engine.gate.set()
    assert (await asked).status == 200


async def test_without_the_setting_no_page_may_call(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED)
    refused = await options(proxy, "/v1/completions", PREFLIGHT)
    served = await proxy.post(TEXT, Origin=PAGE)
    assert (refused.status, served.status) == (405, 200)
    for reply in (refused, served):
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


@SERVERS
async def test_a_page_may_call_and_read_answers_and_errors(query: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sesame\n")
    async with running_proxy(cors_origins=(PAGE,), api_keys_file=str(tmp_path / "keys")) as proxy:
        await proxy.pair()
        path, key = f"/v1/completions{query}", {"Authorization": "Bearer sesame"}

        allowed = await options(proxy, path, PREFLIGHT)
        assert (allowed.status, allowed.body) == (204, b"")
        assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
        assert allowed.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
        assert allowed.headers.getall("Vary") == ["Origin"]

        for body, headers, status in (
            (TEXT, key, 200),
            (TEXT | {"stream": True}, key, 200),
            (TEXT, {}, 401),
            (TEXT | {"n": "x"}, key, 400),
        ):
            reply = await proxy.post(body, path, Origin=PAGE, **headers)
            assert reply.status == status
            assert reply.headers.getall("Access-Control-Allow-Origin") == [PAGE]
            assert "Retry-After" in reply.headers["Access-Control-Expose-Headers"]
            elsewhere = await proxy.post(body, path, Origin="http://elsewhere", **headers)
            assert "Access-Control-Allow-Origin" not in elsewhere.headers
            assert elsewhere.headers["Vary"] == "Origin"
        assert (await options(proxy, path, PREFLIGHT | {"Origin": "http://elsewhere"})).status == 405


async def test_pages_may_ask_what_a_worker_has_its_parent_answer() -> None:
    async with running_workers(cors_origins=("*",)) as proxy:
        await proxy.engine(Role.COMBINED)
        assert (await options(proxy, "/v1/models", PREFLIGHT)).headers["Access-Control-Allow-Origin"] == "*"
        async with proxy.session.get(f"{proxy.url}/v1/models/{MODEL}/", headers={"Origin": PAGE}) as response:
            assert (await response.json())["id"] == MODEL
            assert response.headers.getall("Access-Control-Allow-Origin") == ["*"]
        assert (await proxy.get("/load")).json == {"server_load": 0}


async def test_vllms_own_parameters_hide_no_way_to_kv(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair(Connector.NIXL)
    forged = {"kv_transfer_params": {"remote_host": "10.9.9.9"}, "ec_transfer_params": {}, "mine": 1}
    assert (await proxy.post(TEXT | {"vllm_xargs": forged})).status == 200
    body = {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 3, "extra_args": forged}}
    assert (await proxy.post(body, "/inference/v1/generate")).status == 200
    for engine in (prefill, decode):
        for call, where in zip(engine.calls, ("vllm_xargs", "extra_args"), strict=True):
            found = call.body if where == "vllm_xargs" else call.body["sampling_params"]
            assert found[where] == {"mine": 1}
            assert b"10.9.9.9" not in call.raw
