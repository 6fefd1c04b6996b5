"""MIGRATE=on: streams of a decode that dies continue at another one, and clients get the same text."""

import asyncio
import contextlib
import json
import signal
from typing import Any

import aiohttp
import pytest
from support.handoff import CHAT, COMPLETIONS, Stand, shown, stand, text_of
from support.proxy import Reply, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for, spawned

import pd_simulator.server
from pd_contracts.names import Connector, Role
from pd_proxy.protocol import exclusions
from pd_proxy.request import migration
from pd_proxy.settings import Writer
from pd_routing.names import Reject

IDS = {"prompt": [300 + 7 * number for number in range(100)]}
MESSAGES = {"messages": [{"role": "user", "content": "Say something nice"}]}
WAYS: list[tuple[str, dict[str, Any]]] = [(COMPLETIONS, IDS), (CHAT, MESSAGES)]
GREEDY = {"stream": True, "temperature": 0, "ignore_eos": True}
STREAMS = 200


def body_of(number: int) -> tuple[str, dict[str, Any]]:
    """One of many requests, all different and of several kinds."""
    path, base = WAYS[number % 2]
    body: dict[str, Any] = {**base, **GREEDY, "max_tokens": 250, "seed": number}
    if path == COMPLETIONS:
        body["prompt"] = [400 + 3 * number + 7 * at for at in range(20 + number)]
    else:
        body["messages"] = [{"role": "user", "content": f"Tell me about the number {number}"}]
    options: list[dict[str, Any]] = [
        {},
        {"stream_options": {"include_usage": True}},
        {"return_token_ids": True},
        {"stop": ["no word says this"]},
        {"stop": ["no word says this"], "return_token_ids": True},
    ]
    return path, body | options[number % len(options)]


async def read(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Reply:
    async with session.post(url, json=body) as response:
        return Reply(response.status, response.headers.copy(), await response.read())


def same(found: Any, expected: Any, *, ids: bool) -> None:
    """Equal but for where chunks are cut; usage and the reason of the end come in the same places."""
    assert text_of(found) == text_of(expected)
    assert tokens_of(found) == tokens_of(expected)
    assert bool(tokens_of(found)) == ids
    assert [event.get("usage") for event in found if event.get("usage")] == [
        e["usage"] for e in expected if e.get("usage")
    ]
    ends = [
        [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]] for events in (found, expected)
    ]
    assert ends[0] == ends[1] == ["length"]
    assert all(set(event) <= set().union(*map(set, expected)) for event in found)


def tokens_of(events: list[Any]) -> list[int]:
    return [token for event in events for choice in event["choices"] for token in choice.get("token_ids") or []]


@pytest.mark.timeout(180)
async def test_a_decode_that_is_killed_under_200_streams_loses_none() -> None:
    plain = settings_for()
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(running_proxy(migrate=True, ping_ttl_s=30.0, queue_timeout_s=60.0))
        port = proxy.settings.proxy_port
        common: dict[str, Any] = {"proxy_port": port, "kv_connector": Connector.P2P, "sim_profile": "h200-llama3-8b"}
        engines = [
            await stack.enter_async_context(spawned(settings_for(role, **common)))
            for role in (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
        ]
        reference = await stack.enter_async_context(running(plain, fast_profile()))
        await proxy.stats_where(lambda s: sum(i.state == "ready" for i in s.instances) == len(engines), 60)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        victim = engines[2]
        # It kills itself, because whoever watches it from outside sees the number late on a busy machine. Its half of
        # the streams writes 25,000 tokens.
        assert (await victim.post("/sim/faults", {"die_after_tokens": 2000})).status == 200

        asked = [
            asyncio.create_task(read(session, proxy.url + path, body)) for path, body in map(body_of, range(STREAMS))
        ]
        replies = await asyncio.gather(*asked)
        assert victim.process is not None
        assert await victim.process.wait() == -signal.SIGKILL
        references = await asyncio.gather(
            *(read(reference.session, reference.url + path, body) for path, body in map(body_of, range(STREAMS)))
        )
        for number, (reply, expected) in enumerate(zip(replies, references, strict=True)):
            same(shown(reply), shown(expected), ids="return_token_ids" in body_of(number)[1])
        assert (await proxy.stats()).migrations > 10


WRITTEN = "vllm:generation_tokens_total"


async def broken_off(here: Stand, path: str, body: dict[str, Any], after: int) -> Any:
    """What a client gets whose decode breaks off after so many tokens."""
    before = [await decode.metric(WRITTEN) for decode in here.decodes]
    asked = asyncio.create_task(here.proxy.post(body, path))
    decode = await first_to_write(here.decodes, [count + after for count in before])
    assert (await decode.post("/sim/faults", {"die_mid_stream": True})).status == 200
    reply = await asked
    assert (await decode.post("/sim/faults", {})).status == 200
    return reply


async def first_to_write(decodes: list[Simulator], goals: list[float]) -> Simulator:
    """The first decode that has written so many tokens."""
    async with asyncio.timeout(20):
        while True:
            for decode, goal in zip(decodes, goals, strict=True):
                if await decode.metric(WRITTEN) >= goal:
                    return decode


@pytest.mark.parametrize("shows_stop", [False, True])
@pytest.mark.parametrize("writer", [Writer.PREFILL, Writer.DECODE])
async def test_text_that_was_held_back_for_a_stop_string_is_not_lost(writer: Writer, *, shows_stop: bool) -> None:
    async with stand(decodes=2, step_ms=25.0, migrate=True, first_token=writer) as here:
        for path, base in WAYS:
            body: dict[str, Any] = {**base, **GREEDY, "max_tokens": 40, "stop": ["no word says this", "x" * 30]}
            body |= {"include_stop_str_in_output": True} if shows_stop else {}
            found = shown(await broken_off(here, path, body, after=12))
            same(found, await here.expected(path, body), ids=False)


@pytest.mark.parametrize(
    "excluded",
    [{"temperature": 1}, {"presence_penalty": 1.0}, {"bad_words": ["x"]}, {"response_format": {"type": "json_object"}}],
    ids=lambda value: next(iter(value)),
)
async def test_a_stream_that_cannot_be_continued_exactly_ends_with_an_error_event(excluded: dict[str, Any]) -> None:
    async with stand(decodes=2, step_ms=5.0, migrate=True) as here:
        reply = await broken_off(here, COMPLETIONS, {**IDS, **GREEDY, "max_tokens": 40, **excluded}, after=5)
        assert json.loads(reply.events[-1])["error"]["type"] == "upstream_error"


async def test_a_stream_whose_output_is_worked_on_would_go_on_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(exclusions._FIELDS, "presence_penalty")
    async with stand(decodes=2, step_ms=25.0, migrate=True) as here:
        body = {**IDS, **GREEDY, "max_tokens": 40, "presence_penalty": 0.5}
        found = text_of(shown(await broken_off(here, COMPLETIONS, body, after=12)))
        expected = text_of(await here.expected(COMPLETIONS, body))
        assert (await here.proxy.stats()).migrations == 1
        assert found != expected


SEEDED = GREEDY | {"temperature": 0.8, "seed": 7, "max_tokens": 40}


async def test_a_seeded_stream_goes_on_where_draws_depend_on_the_position_alone() -> None:
    async with stand(decodes=2, step_ms=25.0, migrate=True) as here:
        for path, base in WAYS:
            body = {**base, **SEEDED, "return_token_ids": True}
            found = shown(await broken_off(here, path, body, after=12))
            same(found, await here.expected(path, body), ids=True)
            assert text_of(found) != text_of(await here.expected(path, body | {"seed": 8}))
        assert (await here.proxy.stats()).migrations == len(WAYS)


@pytest.mark.parametrize("draws", [(False, False), (True, False), (False, True)], ids=str)
async def test_a_seeded_stream_does_not_go_on_at_an_engine_that_draws_otherwise(draws: tuple[bool, bool]) -> None:
    async with stand(decodes=2, step_ms=10.0, migrate=True, draws=draws, queue_timeout_s=0.5) as here:
        reply = await broken_off(here, COMPLETIONS, {**IDS, **SEEDED}, after=5)
        assert json.loads(reply.events[-1])["error"]["type"] == "upstream_error"
        greedy = {**IDS, **GREEDY, "max_tokens": 40}
        found = shown(await broken_off(here, COMPLETIONS, greedy, after=5))
        same(found, await here.expected(COMPLETIONS, greedy), ids=False)


async def test_a_seeded_stream_would_say_something_else_where_draws_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pd_simulator.server, "_draws", lambda _: "as if by position")
    async with stand(decodes=2, step_ms=25.0, migrate=True, draws=(False, False), first_token=Writer.DECODE) as here:
        body = {**IDS, **SEEDED}
        found = text_of(shown(await broken_off(here, COMPLETIONS, body, after=12)))
        expected = text_of(await here.expected(COMPLETIONS, body))
        assert (await here.proxy.stats()).migrations == 1
        assert found[:20] == expected[:20]
        assert found != expected


async def test_a_chat_goes_on_only_at_an_engine_that_takes_its_prompt_as_token_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stand(decodes=2, step_ms=10.0, migrate=True, queue_timeout_s=0.5) as here:
        monkeypatch.setattr(migration, "takes_chat_ids", lambda _: False)
        reply = await broken_off(here, CHAT, {**MESSAGES, **GREEDY, "max_tokens": 40}, after=5)
        assert json.loads(reply.events[-1])["error"]["type"] == "upstream_error"
        body = {**IDS, **GREEDY, "max_tokens": 40}
        same(
            shown(await broken_off(here, COMPLETIONS, body, after=5)), await here.expected(COMPLETIONS, body), ids=False
        )


async def test_without_migration_streams_of_a_dead_decode_end_with_an_error_event() -> None:
    async with stand(decodes=2, step_ms=5.0) as here:
        reply = await broken_off(here, COMPLETIONS, {**IDS, **GREEDY, "max_tokens": 40}, after=5)
        assert json.loads(reply.events[-1])["error"]["type"] == "upstream_error"
        assert (await here.proxy.stats()).migrations == 0


async def draining(here: Stand, body: dict[str, Any]) -> Reply:
    """What a client gets whose decode dies after the proxy has got SIGTERM."""
    asked = asyncio.create_task(here.proxy.post(body))
    decode = await first_to_write(here.decodes, [5.0] * len(here.decodes))
    here.proxy.shutdown.set()
    await asyncio.sleep(0.1)
    assert (await decode.post("/sim/faults", {"die_mid_stream": True})).status == 200
    return await asked


async def test_a_stream_goes_on_while_the_proxy_drains() -> None:
    async with stand(decodes=2, step_ms=25.0, migrate=True, drain_timeout_s=30.0) as here:
        body = {**IDS, **GREEDY, "max_tokens": 40}
        expected = await here.expected(COMPLETIONS, body)
        same(shown(await draining(here, body)), expected, ids=False)


async def test_no_stream_waits_for_an_engine_longer_than_the_proxy_drains() -> None:
    async with stand(step_ms=25.0, migrate=True, drain_timeout_s=1.5, queue_timeout_s=30.0) as here:
        began = asyncio.get_running_loop().time()
        reply = await draining(here, {**IDS, **GREEDY, "max_tokens": 40})
        assert json.loads(reply.events[-1])["error"]["type"] == "upstream_error"
        assert 1.0 < asyncio.get_running_loop().time() - began < 5.0


async def test_a_stream_that_no_engine_can_continue_is_counted_as_failed() -> None:
    async with stand(step_ms=5.0, migrate=True, retries=1, queue_timeout_s=0.5) as here:
        reply = await broken_off(here, COMPLETIONS, {**IDS, **GREEDY, "max_tokens": 40}, after=5)
        assert json.loads(reply.events[-1])["error"]["type"] == "upstream_error"
        assert b'pd_proxy_migrations_total{result="failed"} 1.0' in (await here.proxy.get("/metrics")).body


async def test_a_stream_that_moved_is_counted_at_its_new_engine_only() -> None:
    objectives: dict[str, Any] = {"reject": Reject.SLO, "ttft_slo_ms": 1e6, "tpot_slo_ms": 1e6, "step_profile": "demo"}
    async with stand(decodes=2, step_ms=25.0, migrate=True, **objectives) as here:
        body = {**IDS, **GREEDY, "max_tokens": 120}
        asked = asyncio.create_task(here.proxy.post(body))
        decode = await first_to_write(here.decodes, [5.0, 5.0])
        assert (await decode.post("/sim/faults", {"die_mid_stream": True})).status == 200
        await here.proxy.stats_where(lambda s: s.migrations)
        routing = (await here.proxy.stats()).routing
        assert routing is not None
        sequences = {engine.name: engine.sequences for engine in routing.engines}
        assert not asked.done()
        assert (await asked).status == 200
        ended = (await here.proxy.stats()).routing
    assert ended is not None
    number = here.decodes.index(decode)
    assert sequences == {"prefill-0": 0, f"decode-{number}": 0, f"decode-{1 - number}": 1}
    assert {engine.sequences for engine in ended.engines} == {0}
