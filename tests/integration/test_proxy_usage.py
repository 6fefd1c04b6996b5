"""The number of cached prompt tokens is prefill's; decode would count everything that was handed over."""

import json
from typing import Any

import pytest
from aiohttp import web
from support.proxy import BODIES, TEXT, Answer, Call, FakeEngine, chunk, document, running_proxy, start_stream

from pd_contracts import sse
from pd_contracts.names import Role


def cached(details: dict[str, Any] | None) -> Answer:
    """Behave, with these details in the usage."""

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        usage = {"prompt_tokens": 1000, "completion_tokens": 1, "total_tokens": 1001, "prompt_tokens_details": details}
        if not call.body["stream"]:
            return web.json_response(document(engine, call, 1) | {"usage": usage})
        response = await start_stream(request)
        last = {"id": f"cmpl-{call.engine_id}", "choices": [], "usage": usage}
        for event in (chunk(call, "t0 "), sse.encode_event(json.dumps(last)), sse.encode_event(sse.DONE)):
            await response.write(event)
        return response

    return answer


def usage_of(reply: Any) -> dict[str, Any]:
    found: dict[str, Any] = (
        json.loads(reply.events[-2]) if reply.headers["Content-Type"].startswith("text/") else reply.json
    )
    return found["usage"]["prompt_tokens_details"]  # type: ignore[no-any-return]


@BODIES
@pytest.mark.parametrize("of_prefill", [{"cached_tokens": 16}, {"cached_tokens": 0}, None])
async def test_a_pair_says_what_prefills_cache_had(body: dict[str, Any], of_prefill: dict[str, Any] | None) -> None:
    async with running_proxy() as proxy:
        await proxy.engine(Role.PREFILL, answer=cached(of_prefill))
        await proxy.engine(Role.DECODE, answer=cached({"cached_tokens": 999}))
        assert usage_of(await proxy.post(body)) == of_prefill


@BODIES
async def test_a_combined_engine_speaks_for_itself(body: dict[str, Any]) -> None:
    async with running_proxy() as proxy:
        await proxy.engine(Role.COMBINED, answer=cached({"cached_tokens": 500}))
        assert usage_of(await proxy.post(body)) == {"cached_tokens": 500}


async def test_a_text_about_cached_tokens_is_left_alone() -> None:
    said = 'the \\"cached_tokens\\": 5 of "usage"'

    async def answer(engine: FakeEngine, call: Call, _request: web.Request) -> web.StreamResponse:
        return web.json_response(document(engine, call, 1) | {"choices": [{"index": 0, "text": said}]})

    async with running_proxy() as proxy:
        await proxy.engine(Role.PREFILL, answer=cached({"cached_tokens": 1}))
        await proxy.engine(Role.DECODE, answer=answer)
        assert (await proxy.post(TEXT)).json["choices"][0]["text"] == said
