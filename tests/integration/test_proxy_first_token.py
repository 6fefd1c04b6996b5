"""The first token from prefill, the others from decode: the client sees exactly what a single engine would have sent."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from support.handoff import CHAT, COMPLETIONS, stand, text_of
from support.handoff import stages as stages_of
from support.proxy import TEXT as FAKE
from support.proxy import Call, FakeEngine, document, running_proxy

import pd_simulator.server
from pd_contracts.names import TIMING_HEADER, Connector, Role
from pd_proxy.protocol import exclusions
from pd_proxy.request import announcement
from pd_proxy.settings import When, Writer
from pd_routing.names import Reject
from pd_simulator.api import generation as simulated
from pd_simulator.api.metrics import EngineCollector

IDS = {"prompt": [300 + 7 * number for number in range(100)]}
TEXT = {"prompt": "Once upon a time there was a proxy that liked to be the first with everything"}
MESSAGES = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something nice"}]}
WAYS: list[tuple[str, dict[str, Any]]] = [(COMPLETIONS, IDS), (COMPLETIONS, TEXT), (CHAT, MESSAGES)]
# No stand-in for a token that is not known yet.
SEVERAL = "words of more than one token"
# Options under which every chunk is another one.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"return_token_ids": True},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "return_token_ids": True},
    {"min_tokens": 3, "ignore_eos": False},
    {"stop": ["\x07 never"]},
]


def bodies(base: dict[str, Any], *, max_tokens: int = 9) -> list[dict[str, Any]]:
    """With every option, streamed and not."""
    found = []
    for options, stream in itertools.product(OPTIONS, (False, True)):
        body: dict[str, Any] = {**base, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream, **options}
        if not stream:
            body.pop("stream_options", None)
        found.append(body)
    return found


@pytest.mark.parametrize(("path", "base"), WAYS, ids=["ids", "text", "chat"])
async def test_the_answer_is_the_one_of_plain_vllm(path: str, base: dict[str, Any]) -> None:
    async with stand() as here:
        for body in bodies(base):
            found, stages = await here.ask(path, body)
            expected = await here.expected(path, body)
            if "stop" in body and body["stream"]:
                assert text_of(found) == text_of(
                    expected
                )  # plain vLLM holds more back, so its chunks are cut elsewhere
            else:
                assert found == expected, body
            assert stages.first_token == "prefill", (body, stages)
        assert (await here.proxy.stats()).handed_off == len(bodies(base))


async def test_decode_hears_of_a_request_while_prefill_computes_it() -> None:
    async with stand() as here:
        (prefill,), (decode,) = here.prefills, here.decodes
        assert (await prefill.post("/sim/faults", {"stall": "before_first_token"})).status == 200
        for path, base in WAYS:
            asked = asyncio.create_task(here.ask(path, {**base, "max_tokens": 5, "stream": True}))
            await decode.until("sim:kv_waiting", lambda waiting: waiting == 1)
            assert (await prefill.post("/sim/faults", {})).status == 200
            await asked
            assert (await prefill.post("/sim/faults", {"stall": "before_first_token"})).status == 200
        assert (await prefill.post("/sim/faults", {})).status == 200


async def asked_of_nobody_but_prefill(here: Any, path: str, body: dict[str, Any]) -> Any:
    """The answer and its stages; until prefill writes its token, decode has not heard of the request."""
    (prefill,), (decode,) = here.prefills, here.decodes
    assert (await prefill.post("/sim/faults", {"stall": "before_first_token"})).status == 200
    asked = asyncio.create_task(here.ask(path, body))
    await prefill.until("vllm:num_requests_running", lambda running: running == 1)
    await asyncio.sleep(0.1)
    assert await decode.metric("sim:kv_waiting") == 0
    assert (await prefill.post("/sim/faults", {})).status == 200
    return await asked


async def test_without_a_stand_in_decode_hears_of_a_request_behind_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement, "_WORD", SEVERAL)
    async with stand() as here:
        for path, base in WAYS:
            body = {**base, "max_tokens": 5, "ignore_eos": True, "stream": True}
            found, _ = await asked_of_nobody_but_prefill(here, path, body)
            assert found == await here.expected(path, body)


async def test_an_answer_that_ends_with_its_first_token_needs_no_decode() -> None:
    async with stand(profile={"eos_one_in": 1}) as here:
        for limit, announced in ((1, 0), (5, 1)):
            for (path, base), stream in itertools.product(WAYS, (False, True)):
                before = await here.decodes[0].metric("vllm:generation_tokens_total")
                body: dict[str, Any] = {**base, "max_tokens": limit, "stream": stream}
                found, stages = await here.ask(path, body)
                assert found == await here.expected(path, body)
                assert stages.decode_instance == "prefill-0"
                after = await here.decodes[0].metric("vllm:generation_tokens_total")
                # Decode has heard of what was to have more tokens, and ends it in the step in which it hears of the end.
                assert after - before <= announced


@pytest.mark.parametrize("ends_at", [1, 8])
async def test_predictions_learn_the_length_of_every_answer(ends_at: int) -> None:
    predicting: dict[str, Any] = {
        "reject": Reject.SLO,
        "ttft_slo_ms": 60_000.0,
        "tpot_slo_ms": 1000.0,
        "step_profile": "demo",
    }
    async with stand(profile={"eos_one_in": 1} if ends_at == 1 else {}, **predicting) as here:
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            body: dict[str, Any] = {**base, "max_tokens": 8, "ignore_eos": ends_at > 1, "stream": stream}
            found, stages = await here.ask(path, body)
            assert found == await here.expected(path, body)
            assert stages.first_token == "prefill"
            await here.proxy.settled()
            stats = (await here.proxy.stats()).routing
            assert stats is not None
            assert stats.answer_tokens == ends_at, (path, stream)


async def test_a_minimum_of_tokens_holds_for_the_first_one_too() -> None:
    async with stand(profile={"eos_one_in": 1}) as here:
        for path, base in WAYS:
            body: dict[str, Any] = {**base, "max_tokens": 9, "min_tokens": 4}
            found, stages = await here.ask(path, body)
            assert found == await here.expected(path, body)
            assert found["usage"]["completion_tokens"] == 5
            assert stages.first_token == "prefill"


# What works on the output so far, or on the prompt that decode gets: in the simulated engine as in vLLM, an answer of two parts differs.
# Unit tests have every field; `echo` and beam search go to engines that do both. Chunks of several tokens, special tokens and offsets are not simulated.
EXCLUDED: list[tuple[str, dict[str, Any]]] = [
    ("structured_output", {"response_format": {"type": "json_object"}}),
    ("structured_output", {"structured_outputs": {"regex": "a+"}}),
    ("structured_output", {"structural_tag": "{}"}),
    ("penalties", {"presence_penalty": 0.5}),
    ("penalties", {"frequency_penalty": 0.5}),
    ("penalties", {"repetition_detection": {"max_pattern_size": 3}}),
    ("bad_words", {"bad_words": ["no"]}),
    ("logits_processors", {"watermarking": True}),
    ("logits_processors", {"logits_processors": ["a.b"]}),
    ("logits_processors", {"vllm_xargs": {"a": 1}}),
    ("reasoning", {"thinking_token_budget": 5}),
    ("truncation", {"truncate_prompt_tokens": 5}),
]
CHAT_ONLY: list[tuple[str, dict[str, Any]]] = [
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("tools", {"functions": [{"name": "f"}]}),
    ("reasoning", {"include_reasoning": False}),
]
NOT_SIMULATED: list[tuple[str, dict[str, Any]]] = [
    ("several_sequences", {"n": 2, "temperature": 1}),
    ("special_tokens", {"skip_special_tokens": False}),
    ("stream_interval", {"stream_interval": 2}),
]
SEEDED: dict[str, Any] = {"seed": 7, "temperature": 0.5, "ignore_eos": True, "max_tokens": 9}


async def test_what_a_second_engine_would_answer_differently_one_answers_alone() -> None:
    async with stand() as here:
        for (reason, more), (path, base), stream in itertools.product(
            [*EXCLUDED, *CHAT_ONLY, *NOT_SIMULATED], WAYS[1:], (False, True)
        ):
            if path != CHAT and (reason, more) in CHAT_ONLY:
                continue
            body: dict[str, Any] = {**base, "max_tokens": 5, "ignore_eos": True, "stream": stream, **more}
            found, stages = await here.ask(path, body)
            assert stages.first_token_reason == reason, body
            assert by_place(found) == by_place(await here.expected(path, body)), body
        assert (await here.proxy.stats()).handed_off == 0


async def test_without_its_exclusion_each_would_be_answered_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand() as here:
        for _, more in [*EXCLUDED, *CHAT_ONLY]:
            (name,) = more
            body: dict[str, Any] = {**MESSAGES, "max_tokens": 5, "ignore_eos": True, **more}
            with monkeypatch.context() as without:
                without.delitem(exclusions._FIELDS, name)
                found, stages = await here.ask(CHAT, body)
            expected = await here.expected(CHAT, body)
            assert stages.first_token == "prefill", name
            assert whole_text(found) != whole_text(expected), name
            assert whole_text(found)[:3] == whole_text(expected)[:3], name


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
async def test_a_penalty_that_is_the_engines_default_counts_as_if_it_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, *, told: bool
) -> None:
    """Not told, the answers of two engines differ, which shows why this is needed."""
    asked, draws = simulated.on_output_of, EngineCollector._draws

    def on_output_of(data: bytes) -> bytes:
        return asked(data) or (b"" if b'"presence_penalty"' in data else b"2")

    def with_own(collector: EngineCollector) -> Iterator[Metric]:
        yield from draws(collector)
        family = GaugeMetricFamily("pd_own_sampling", "Its own defaults.", labels=("fields", "max_tokens"))
        family.add_metric(("presence_penalty", ""), 1)
        yield family

    monkeypatch.setattr(simulated, "on_output_of", on_output_of)
    if told:
        monkeypatch.setattr(EngineCollector, "_draws", with_own)
    async with stand() as here:
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            body: dict[str, Any] = {**base, "max_tokens": 5, "ignore_eos": True, "stream": stream}
            found, stages = await here.ask(path, body)
            assert stages.first_token_reason == ("penalties" if told else "")
            assert (found == await here.expected(path, body)) is told
            neutral = body | {"presence_penalty": 0}
            found, stages = await here.ask(path, neutral)
            assert stages.first_token == "prefill"
            assert found == await here.expected(path, neutral)


async def test_a_seeded_answer_is_handed_over_where_both_draw_by_position() -> None:
    async with stand() as here:
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            body: dict[str, Any] = {**base, **SEEDED, "stream": stream}
            found, stages = await here.ask(path, body)
            assert stages.first_token == "prefill"
            assert found == await here.expected(path, body)
            assert found != await here.expected(path, body | {"seed": 8})


@pytest.mark.parametrize("draws", [(False, False), (True, False), (False, True)], ids=str)
async def test_a_seeded_answer_is_decodes_alone_where_the_two_draw_otherwise(draws: tuple[bool, bool]) -> None:
    async with stand(prefill_draws=draws[0], draws=draws[1:]) as here:
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            body: dict[str, Any] = {**base, **SEEDED, "stream": stream}
            found, stages = await here.ask(path, body)
            assert (stages.first_token, stages.first_token_reason) == ("", "seed")
            assert found == await here.expected(path, body)
        _, greedy = await here.ask(COMPLETIONS, {**IDS, **SEEDED, "temperature": 0})
        assert greedy.first_token == "prefill"


async def test_a_seeded_answer_would_be_another_where_draws_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd_simulator.server, "_draws", lambda _: "as if by position")
    async with stand(prefill_draws=False, draws=(False,)) as here:
        body = {**IDS, **SEEDED, "return_token_ids": True}
        found, stages = await here.ask(COMPLETIONS, body)
        expected = await here.expected(COMPLETIONS, body)
        assert stages.first_token == "prefill"
        assert found["choices"][0]["token_ids"][0] == expected["choices"][0]["token_ids"][0]
        assert found["choices"][0]["token_ids"] != expected["choices"][0]["token_ids"]


def by_place(answer: Any) -> Any:
    """Chunks of several sequences come in any order."""
    if isinstance(answer, dict):
        return answer
    return sorted(answer, key=lambda event: [choice["index"] for choice in event["choices"]])


async def test_decode_asked_after_prefill_hears_of_no_request_before_its_token() -> None:
    async with stand(decode_asked=When.AFTER_PREFILL) as here:
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            body = {**base, "max_tokens": 5, "ignore_eos": True, "stream": stream}
            found, stages = await asked_of_nobody_but_prefill(here, path, body)
            assert found == await here.expected(path, body)
            assert stages.first_token == "prefill"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_stop_string_over_the_border_is_found(*, stream: bool) -> None:
    async with stand() as here:
        for path, base in WAYS:
            body: dict[str, Any] = {**base, "max_tokens": 9, "ignore_eos": True}
            text = whole_text(await here.expected(path, body))
            first = whole_text(await here.expected(path, body | {"max_tokens": 1}))
            body |= {"stop": [text[len(first) - 2 : len(first) + 3]], "stream": stream}
            found, stages = await here.ask(path, body)
            assert found == await here.expected(path, body)
            assert stages.first_token_reason == "stop_string"


@pytest.mark.parametrize("announced", [False, True], ids=["asked behind the token", "announced"])
async def test_kv_whose_token_is_held_back_is_not_computed_again(
    monkeypatch: pytest.MonkeyPatch, *, announced: bool
) -> None:
    if not announced:
        monkeypatch.setattr(announcement, "_WORD", SEVERAL)
    async with stand() as here:
        decode = here.decodes[0]
        assert decode.engine is not None
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            body: dict[str, Any] = {**base, "max_tokens": 9, "ignore_eos": True}
            first = whole_text(await here.expected(path, body | {"max_tokens": 1}))
            body |= {"stop": [first[-1] + "\x07"], "stream": stream}
            before = decode.engine.stats.local_tokens
            _, stages = await here.ask(path, body)
            assert stages.first_token_reason == "stop_string"
            assert decode.engine.stats.local_tokens - before <= 2, (
                "the last token of the announced prompt, and of the whole one"
            )
        assert (await decode.books())["held"] == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", ["drop_kv", "out_of_memory"])
async def test_kv_that_is_lost_costs_time_and_nothing_else(fault: str, *, stream: bool) -> None:
    async with stand() as here:
        await here.ask(COMPLETIONS, {**IDS, "max_tokens": 3})
        assert (await here.decodes[0].post("/sim/faults", {fault: True})).status == 200
        for path, base in WAYS:
            body: dict[str, Any] = {
                **base,
                "max_tokens": 9,
                "ignore_eos": True,
                "stream": stream,
                "return_token_ids": True,
            }
            found, _ = await here.ask(path, body)
            assert found == await here.expected(path, body)


async def test_a_request_that_is_too_long_is_refused_as_plain_vllm_refuses_it() -> None:
    async with stand() as here:
        for path, base in WAYS:
            for stream in (False, True):
                body: dict[str, Any] = {**base, "max_tokens": 1_000_000, "stream": stream}
                reply = await here.proxy.post(body, path)
                async with here.plain.session.post(here.plain.url + path, json=body) as plain:
                    assert (reply.status, reply.error["message"]) == (400, (await plain.json())["error"]["message"])


@pytest.mark.parametrize("setting", [{"first_token": Writer.DECODE}, {}], ids=["off", "n"])
async def test_decode_first_is_what_remains(setting: dict[str, Any]) -> None:
    async with stand(**setting) as here:
        (prefill,), (decode,) = here.prefills, here.decodes
        more = {} if setting else {"presence_penalty": 0.5}
        for (path, base), stream in itertools.product(WAYS, (False, True)):
            assert (await prefill.post("/sim/faults", {"stall": "before_first_token"})).status == 200
            body: dict[str, Any] = {**base, **more, "max_tokens": 9, "stream": stream, "ignore_eos": True}
            asked = asyncio.create_task(here.ask(path, body))
            await decode.until("sim:kv_waiting", lambda waiting: waiting == 1)
            assert (await prefill.post("/sim/faults", {})).status == 200
            found, stages = await asked
            assert found == await here.expected(path, body)
            assert stages.first_token_reason == ("off" if setting else "penalties")
        assert (await here.proxy.stats()).handed_off == 0


async def test_decode_after_prefill_if_that_is_wanted() -> None:
    async with stand(first_token=Writer.DECODE, decode_asked=When.AFTER_PREFILL) as here:
        (prefill,), (decode,) = here.prefills, here.decodes
        assert (await prefill.post("/sim/faults", {"stall": "before_first_token"})).status == 200
        asked = asyncio.create_task(here.ask(COMPLETIONS, {**IDS, "max_tokens": 5}))
        await prefill.until("vllm:num_requests_running", lambda running: running == 1)
        assert await decode.metric("sim:kv_waiting") == 0
        assert (await prefill.post("/sim/faults", {})).status == 200
        await asked


@pytest.mark.parametrize("version", ["0.31.2", "", "0.32.0"])
async def test_a_chat_is_continued_only_where_its_prompt_is_taken_as_token_ids(version: str) -> None:
    """An older vLLM ignores the ids, and would answer the client's messages from the beginning, behind prefill's token."""
    async with running_proxy() as proxy:
        await proxy.engine(Role.PREFILL, Connector.P2P, version="0.32.0")
        decode = await proxy.engine(Role.DECODE, Connector.P2P, version=version)
        body = {"model": FAKE["model"], **MESSAGES, "max_tokens": 4}
        reply = await proxy.post(body, CHAT, **{TIMING_HEADER: "1"})
        assert reply.status == 200
        old = version != "0.32.0"
        assert (stages_of(reply).first_token_reason == "engine_version") is old
        if old:
            assert [call.body.get("messages") for call in decode.calls] == [MESSAGES["messages"]]
            assert "prompt_token_ids" not in decode.calls[0].body["kv_transfer_params"]


@pytest.mark.parametrize("more", [{}, {"presence_penalty": 0.5}], ids=["hand-off", "decode first"])
async def test_prefill_knows_whether_the_client_waits_for_its_token_or_its_kv(more: dict[str, Any]) -> None:
    async with running_proxy() as proxy:
        prefill, _ = await proxy.pair(Connector.P2P)
        assert (await proxy.post(FAKE | more)).status == 200
        [call] = prefill.calls
        assert call.body["kv_transfer_params"]["pd"].get("first") == ("kv" if more else None)


def whole_text(answer: Any) -> str:
    choice = answer["choices"][0]
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


async def names_other_kv(engine: FakeEngine, call: Call, _request: web.Request) -> web.Response:
    return web.json_response(document(engine, call, 1) | {"kv_transfer_params": {"pd": {"key": "another one"}}})


@pytest.mark.parametrize("more", [{}, {"presence_penalty": 0.5}], ids=["hand-off", "decode first"])
async def test_prefill_is_believed_only_if_it_names_the_kv(more: dict[str, Any]) -> None:
    """Decode would wait for KV that nobody sends."""
    async with running_proxy(retries=0) as proxy:
        prefill, decode = await proxy.pair(Connector.P2P)
        prefill.answer = names_other_kv
        decode.gate.clear()
        reply = await proxy.post(FAKE | more)
        assert reply.status == 502
        assert "does not name the requested KV" in reply.error["message"]
