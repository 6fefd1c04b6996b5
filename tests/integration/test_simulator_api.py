"""The simulator's HTTP API over real sockets: shapes and statuses as vLLM 0.23 has them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts.names import Connector, Role
from pd_simulator.api.shapes import FINGERPRINT

PROMPT = [300, 400, 500, 600, 700]
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(name="simulator")
async def _simulator() -> AsyncIterator[Simulator]:
    async with running(settings_for(), fast_profile()) as simulator:
        yield simulator


async def eventually_idle(simulator: Simulator) -> None:
    await simulator.until("vllm:num_requests_running", lambda count: count == 0)
    await simulator.until("vllm:num_requests_waiting", lambda count: count == 0)


async def test_a_completion_has_vllms_shape(simulator: Simulator) -> None:
    answer = await simulator.complete(PROMPT, max_tokens=3, request_id="abc")

    body = answer.body
    (choice,) = body.pop("choices")
    token_ids, text = choice.pop("token_ids"), choice.pop("text")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "id": "cmpl-abc",
        "object": "text_completion",
        "model": "sim-llama3-8b",
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3, "prompt_tokens_details": None},
        "kv_transfer_params": None,
    }
    assert choice == {
        "index": 0,
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "prompt_logprobs": None,
        "prompt_token_ids": PROMPT,
        "routed_experts": None,
    }
    assert len(token_ids) == 3
    assert len(text.split()) == 3


async def test_ids_are_null_unless_asked_for(simulator: Simulator) -> None:
    answer = await simulator.complete(PROMPT, max_tokens=1, return_token_ids=False)

    assert answer.body["choices"][0]["token_ids"] is None
    assert answer.body["choices"][0]["prompt_token_ids"] is None


async def test_a_streamed_completion_has_vllms_shape(simulator: Simulator) -> None:
    whole = await simulator.complete(PROMPT, max_tokens=4)

    answer = await simulator.complete(PROMPT, max_tokens=4, stream=True, request_id="abc")

    choices = [chunk["choices"][0] for chunk in answer.chunks]
    assert answer.done
    assert {key for chunk in answer.chunks for key in chunk} == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "system_fingerprint",
    }
    assert {(chunk["id"], chunk["object"]) for chunk in answer.chunks} == {("cmpl-abc", "text_completion")}
    assert [set(choice) for choice in choices] == [
        {"index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"}
    ] * 4
    assert [choice["prompt_token_ids"] for choice in choices] == [PROMPT, None, None, None]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert ["system_fingerprint" in chunk for chunk in answer.chunks] == [False, False, False, True]
    assert answer.token_ids == whole.token_ids
    assert "".join(choice["text"] for choice in choices) == whole.body["choices"][0]["text"]


@pytest.mark.parametrize("ids", [False, True])
async def test_streams_with_and_without_ids_say_the_same(simulator: Simulator, ids: bool) -> None:
    whole = await simulator.complete(PROMPT, max_tokens=6)

    answer = await simulator.complete(PROMPT, max_tokens=6, stream=True, return_token_ids=ids)

    assert "".join(chunk["choices"][0]["text"] for chunk in answer.chunks) == whole.body["choices"][0]["text"]
    assert all((chunk["choices"][0]["token_ids"] is not None) == ids for chunk in answer.chunks)


async def test_usage_comes_last_and_only_if_asked_for(simulator: Simulator) -> None:
    answer = await simulator.complete(PROMPT, max_tokens=3, stream=True, stream_options={"include_usage": True})

    *tokens, last = answer.chunks
    assert all("usage" not in chunk and chunk["choices"] for chunk in tokens)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3}


async def test_continuous_usage_counts_along(simulator: Simulator) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    answer = await simulator.complete(PROMPT, max_tokens=3, stream=True, stream_options=options)

    assert [chunk["usage"]["completion_tokens"] for chunk in answer.chunks] == [1, 2, 3, 3]
    assert [chunk["usage"]["total_tokens"] for chunk in answer.chunks] == [6, 7, 8, 8]


async def test_a_chat_has_vllms_shape(simulator: Simulator) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "return_token_ids": True, "ignore_eos": True}

    answer = await simulator.post("/v1/chat/completions", body, request_id="abc")

    assert (answer.status, answer.body["id"], answer.body["object"]) == (200, "chatcmpl-abc", "chat.completion")
    choice = answer.body["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 3
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("length", None, None)
    assert len(choice["token_ids"]) == 3
    assert len(answer.body["prompt_token_ids"]) == answer.body["usage"]["prompt_tokens"]


async def test_a_streamed_chat_begins_with_the_role_alone(simulator: Simulator) -> None:
    body = {"messages": HELLO, "max_completion_tokens": 3, "stream": True, "return_token_ids": True, "ignore_eos": True}
    whole = await simulator.post("/v1/chat/completions", {**body, "stream": False})

    answer = await simulator.post("/v1/chat/completions", body)

    role, *tokens = answer.chunks
    assert role["object"] == "chat.completion.chunk"
    assert role["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert role["prompt_token_ids"] == whole.body["prompt_token_ids"]
    assert [list(chunk["choices"][0]["delta"]) for chunk in tokens] == [["content"]] * 3
    assert ["stop_reason" in chunk["choices"][0] for chunk in tokens] == [False, False, True]
    assert answer.token_ids == whole.token_ids
    content = "".join(chunk["choices"][0]["delta"]["content"] for chunk in tokens)
    assert content == whole.body["choices"][0]["message"]["content"]
    assert answer.done


async def test_the_same_prompt_gives_the_same_answer_and_another_prompt_another(simulator: Simulator) -> None:
    first = await simulator.complete(PROMPT, max_tokens=8)

    assert (await simulator.complete(PROMPT, max_tokens=8, temperature=1.0)).token_ids == first.token_ids
    assert (await simulator.complete([*PROMPT[1:], 300], max_tokens=8)).token_ids != first.token_ids


@pytest.mark.parametrize("by_position", [True, False])
async def test_a_seed_decides_what_is_drawn_and_not_only_by_position_if_draws_are_counted(by_position: bool) -> None:
    async with running(settings_for(sim_draws_by_position=by_position), fast_profile()) as simulator:
        greedy = (await simulator.complete(PROMPT, max_tokens=8)).token_ids
        seeded = (await simulator.complete(PROMPT, max_tokens=8, seed=5)).token_ids
        assert seeded != greedy
        assert (await simulator.complete(PROMPT, max_tokens=8, seed=5)).token_ids == seeded
        assert (await simulator.complete(PROMPT, max_tokens=8, seed=6)).token_ids != seeded
        assert (await simulator.complete(PROMPT, max_tokens=8, seed=-1)).token_ids == greedy
        assert (await simulator.complete(PROMPT, max_tokens=8, seed=5, temperature=0)).token_ids == greedy
        rest = (await simulator.complete([*PROMPT, *seeded[:3]], max_tokens=5, seed=5)).token_ids
        assert (rest == seeded[3:]) == by_position


async def test_a_batch_of_prompts_with_several_outputs_each(simulator: Simulator) -> None:
    prompts = [PROMPT, [301, 302]]
    alone = [(await simulator.complete(prompt, max_tokens=4)).token_ids for prompt in prompts]

    whole = await simulator.complete(prompts, max_tokens=4, n=2)
    streamed = await simulator.complete(prompts, max_tokens=4, n=2, stream=True, stream_options={"include_usage": True})

    choices = whole.body["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["token_ids"] for choice in choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert whole.body["usage"]["prompt_tokens"] == 7
    assert whole.body["usage"]["completion_tokens"] == 16
    assert streamed.chunks[-1]["usage"]["total_tokens"] == 23
    for index in range(4):
        parts = [c for chunk in streamed.chunks for c in chunk["choices"] if c["index"] == index]
        assert [token for part in parts for token in part["token_ids"]] == choices[index]["token_ids"]


async def test_an_output_ends_by_itself_unless_told_not_to() -> None:
    async with running(settings_for(), fast_profile(eos_one_in=5)) as simulator:
        ended = await simulator.complete(PROMPT, max_tokens=200, ignore_eos=False)
        longer = await simulator.complete(PROMPT, max_tokens=200, ignore_eos=False, min_tokens=50)
        full = await simulator.complete(PROMPT, max_tokens=200)

    choice = ended.body["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert choice["token_ids"][-1] == 2
    assert ended.body["usage"]["completion_tokens"] == len(choice["token_ids"]) < 200
    assert len(choice["text"].split()) == len(choice["token_ids"]) - 1
    assert len(longer.token_ids) > 50
    assert full.body["choices"][0]["finish_reason"] == "length"
    assert len(full.token_ids) == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_output_before_it(simulator: Simulator, stream: bool) -> None:
    text = (await simulator.complete(PROMPT, max_tokens=20)).body["choices"][0]["text"]
    stop = text.split()[5]

    answer = await simulator.complete(PROMPT, max_tokens=20, stop=["never", stop], stream=stream)

    bodies = answer.chunks if stream else [answer.body]
    choices = [choice for body in bodies for choice in body["choices"]]
    assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)
    await eventually_idle(simulator)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"max_tokens": 4}, 400),
        ("/v1/completions", {"prompt": "x", "model": "other"}, 404),
        ("/v1/completions", {"prompt": [32_000]}, 400),
        ("/v1/completions", {"prompt": [5] * 9000}, 400),
        ("/v1/completions", {"prompt": "x", "logprobs": 1}, 400),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"prompt": "x"}, 400),
        ("/v1/responses", {"prompt": "x"}, 400),
        ("/v1/responses", {"input": "x", "background": True}, 400),
        ("/v1/responses", {"input": "x", "include": ["message.output_text.logprobs"]}, 400),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, 404),
        ("/v1/responses/resp_1/cancel", {}, 404),
        ("/v1/embeddings", {"input": "x"}, 404),
        ("/v1/models", {}, 405),
    ],
)
async def test_bad_requests_get_an_error_in_openais_shape(
    simulator: Simulator, path: str, body: dict[str, Any], status: int
) -> None:
    answer = await simulator.post(path, body)

    assert answer.status == status
    assert set(answer.body["error"]) == {"message", "type", "param", "code"}
    assert answer.body["error"]["code"] == status
    assert answer.body["error"]["message"]


async def test_malformed_json_is_400(simulator: Simulator) -> None:
    assert (await simulator.post("/v1/completions", data=b'{"prompt": ')).status == 400


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/inference/v1/generate"])
@pytest.mark.parametrize("data", [b'{"metadata": ' + b"[" * 100_000, b'{"model": "\xff"}'], ids=["deep", "no text"])
async def test_json_that_cannot_be_held_is_400(simulator: Simulator, path: str, data: bytes) -> None:
    assert (await simulator.post(path, data=data)).status == 400


async def test_only_json_is_read(simulator: Simulator) -> None:
    async with simulator.session.post(f"{simulator.url}/v1/completions", data={"prompt": "x"}) as response:
        assert response.status == 400
        assert "application/json" in (await response.json())["error"]["message"]


async def test_an_id_that_is_in_use_is_refused(simulator: Simulator) -> None:
    slow = asyncio.create_task(simulator.complete(PROMPT, max_tokens=400, request_id="same"))
    await simulator.until("vllm:num_requests_running", lambda count: count == 1)

    again = await simulator.complete(PROMPT, max_tokens=1, request_id="same")

    assert again.status == 400
    assert "already running" in again.body["error"]["message"]
    assert (await slow).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_request(simulator: Simulator, stream: bool) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8000, "stream": stream, "ignore_eos": True}
    task = asyncio.create_task(simulator.post("/v1/completions", body))
    await simulator.until("vllm:num_requests_running", lambda count: count == 1)

    task.cancel()

    await eventually_idle(simulator)
    assert await simulator.metric('vllm:request_success_total{engine="0",finished_reason="abort"') == 1
    assert await simulator.metric("vllm:kv_cache_usage_perc") == 0


async def test_metrics_have_vllms_names_and_count(simulator: Simulator) -> None:
    await simulator.complete([PROMPT, PROMPT], max_tokens=4)

    assert await simulator.metric("vllm:prompt_tokens_total") == 10
    assert await simulator.metric("vllm:generation_tokens_total") == 8
    by_source = 'vllm:prompt_tokens_by_source_total{engine="0",model_name="sim-llama3-8b",source='
    assert await simulator.metric(f'{by_source}"local_compute"') == 10
    assert await simulator.metric(f'{by_source}"external_kv_transfer"') == 0
    assert await simulator.metric("vllm:time_to_first_token_seconds_count") == 2
    assert await simulator.metric("vllm:cache_config_info") == 1
    assert await simulator.metric("vllm:inter_token_latency_seconds_count") == 6
    assert await simulator.metric('vllm:request_success_total{engine="0",finished_reason="length"') == 2


async def test_models_health_version(simulator: Simulator) -> None:
    models = simulator.session.get(f"{simulator.url}/v1/models")
    async with models as response:
        (card,) = (await response.json())["data"]

    assert (card["id"], card["object"], card["max_model_len"]) == ("sim-llama3-8b", "model", 8192)
    assert await simulator.get("/health") == (200, b"")
    assert b"pd-simulator" in (await simulator.get("/version"))[1]


async def test_tokens_of_a_text_and_back(simulator: Simulator) -> None:
    text = "Prefill and decode, 2 GPUs: naïve?"

    tokens = (await simulator.post("/tokenize", {"prompt": text, "return_token_strs": True})).body
    back = await simulator.post("/detokenize", {"tokens": tokens["tokens"]})
    as_prompt = await simulator.complete(text, max_tokens=1)

    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert back.body == {"prompt": text}
    assert as_prompt.body["choices"][0]["prompt_token_ids"] == tokens["tokens"]


async def test_tokens_of_a_chat_are_its_prompt(simulator: Simulator) -> None:
    tokens = (await simulator.post("/tokenize", {"messages": HELLO})).body["tokens"]
    chat = await simulator.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1, "return_token_ids": True})

    assert chat.body["prompt_token_ids"] == tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [("/tokenize", {}), ("/detokenize", {}), ("/detokenize", {"tokens": [99_999]}), ("/detokenize", {"tokens": [-1]})],
)
async def test_tokenizing_nothing_or_nonsense_is_400(simulator: Simulator, path: str, body: dict[str, Any]) -> None:
    assert (await simulator.post(path, body)).status == 400


async def test_the_openai_client_reads_everything(simulator: Simulator) -> None:
    async with openai.AsyncOpenAI(base_url=f"{simulator.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.completions.create(model="sim-llama3-8b", prompt="Once upon a time", max_tokens=5)
        text = ""
        async for part in await client.completions.create(
            model="sim-llama3-8b", prompt="Once upon a time", max_tokens=5, stream=True
        ):
            text += part.choices[0].text
        chat = await client.chat.completions.create(
            model="sim-llama3-8b", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
        spoken, usage = "", None
        async for chunk in await client.chat.completions.create(
            model="sim-llama3-8b",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        ):
            spoken += chunk.choices[0].delta.content or "" if chunk.choices else ""
            usage = chunk.usage or usage
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.BadRequestError, match="out of vocabulary"):
            await client.completions.create(model="sim-llama3-8b", prompt=[40_000])

    assert whole.choices[0].text == text
    assert chat.choices[0].message.content == spoken
    assert usage is not None
    assert usage.completion_tokens == 5


async def test_a_response_has_vllms_shape_and_the_bodys_id(simulator: Simulator) -> None:
    asked = {"input": "hello", "instructions": "be brief", "max_output_tokens": 3, "ignore_eos": True}
    body = (await simulator.post("/v1/responses", asked | {"request_id": "resp_mine"}, request_id="header")).body

    assert (body["id"], body["object"], body["status"]) == ("resp_mine", "response", "incomplete")
    assert (body["instructions"], body["max_output_tokens"]) == ("be brief", 3)
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    [message] = body["output"]
    assert (message["role"], len(message["content"][0]["text"].split())) == ("assistant", 3)
    assert body["usage"]["output_tokens"] == 3
    assert body["input_messages"] is body["output_messages"] is None


async def test_a_responses_stream_is_typed_numbered_and_ends_with_the_response(simulator: Simulator) -> None:
    asked = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}], "max_output_tokens": 3}
    answer = await simulator.post("/v1/responses", asked | {"ignore_eos": True, "stream": True})

    assert [event["type"].removeprefix("response.") for event in answer.chunks] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in answer.chunks] == list(range(11))
    assert not answer.done, "there is no [DONE]"
    said = "".join(event["delta"] for event in answer.chunks if "delta" in event)
    whole = (await simulator.post("/v1/responses", asked | {"ignore_eos": True})).body
    assert answer.chunks[-1]["response"]["output"][0]["content"][0]["text"] == said
    assert whole["output"][0]["content"][0]["text"] == said


async def test_a_response_whose_engine_fails_breaks_off_without_an_event() -> None:
    async with running(settings_for(Role.DECODE, kv_connector=Connector.NIXL), fast_profile()) as decode:
        nobody = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": 1, "remote_request_id": "x"}
        body = {"input": "hello " * 40, "stream": True, "kv_transfer_params": nobody | {"remote_engine_id": "e"}}
        async with decode.session.post(f"{decode.url}/v1/responses", json=body) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
