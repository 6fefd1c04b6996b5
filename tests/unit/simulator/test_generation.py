"""Bodies that are served, and bodies that are refused with vLLM's status and words."""

import json
from typing import Any

import pytest

from pd_simulator.api.generation import Generation, Rules
from pd_simulator.errors import ApiError
from pd_simulator.tokenizer import VOCABULARY_SIZE, Tokenizer

RULES = Rules("m", 100, Tokenizer())
HELLO = [{"role": "user", "content": "hello"}]


def completion(**body: Any) -> Generation:
    return RULES.completion(json.dumps(body).encode())


def chat(**body: Any) -> Generation:
    return RULES.chat(json.dumps({"messages": HELLO, **body}).encode())


def refusal(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        completion(**body)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hello world", 1),
        (["hello", "brave new", "world"], 3),
        ([5, 6, 7], 1),
        ([[5, 6, 7], [8]], 2),
    ],
)
def test_all_kinds_of_prompts_are_read(prompt: Any, prompts: int) -> None:
    generation = completion(prompt=prompt)

    assert len(generation.prompts) == prompts
    assert all(generation.prompts)


def test_token_ids_are_taken_as_they_are() -> None:
    assert completion(prompt=[[5, 6], [7]]).prompts == [[5, 6], [7]]


def test_defaults_are_vllms() -> None:
    generation = completion(prompt="hello")

    assert (generation.max_tokens, generation.n, generation.min_tokens) == (16, 1, 0)
    assert (generation.stop, generation.kv_transfer_params) == ((), {})
    flags = (generation.stream, generation.ignore_eos, generation.return_token_ids, generation.include_usage)
    assert flags == (False, False, False, False)


def test_nulls_mean_defaults() -> None:
    names = ("max_tokens", "n", "min_tokens", "stop", "stream", "stream_options", "ignore_eos", "kv_transfer_params")

    assert completion(prompt="hello", **dict.fromkeys(names)) == completion(prompt="hello")


def test_unknown_fields_and_sampling_parameters_are_ignored() -> None:
    assert completion(prompt="x", top_p=0.5, seed=3, temperature=0, user="me", foo={}) == completion(prompt="x")


def test_chat_without_a_limit_may_fill_the_context() -> None:
    generation = chat()

    assert generation.max_tokens == 100 - generation.prompt_tokens


@pytest.mark.parametrize("over", [0, 1])
def test_a_conversation_that_fills_the_context_is_told_its_length_not_that_its_limit_is_nothing(over: int) -> None:
    tokens = chat().prompt_tokens
    full = Rules("m", tokens - over, Tokenizer())
    bodies = [(full.chat, {"messages": HELLO}), (full.response, {"input": "hello"})]

    for read, body in bodies:
        with pytest.raises(ApiError) as caught:
            read(json.dumps(body).encode())
        assert caught.value.param == "input_tokens"
        assert f"your prompt contains {tokens} input tokens" in str(caught.value)


def test_chat_prefers_the_newer_name_of_the_limit() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert chat(max_tokens=5).max_tokens == 5


def test_chat_reads_parts_of_text() -> None:
    parts = [{"type": "text", "text": "good"}, {"type": "text", "text": "day"}]

    assert (
        chat(messages=[{"role": "user", "content": parts}]).prompts
        == chat(messages=[{"role": "user", "content": "good\nday"}]).prompts
    )


def test_continuous_usage_needs_usage() -> None:
    only = completion(prompt="x", stream=True, stream_options={"continuous_usage_stats": True})
    both = completion(prompt="x", stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})

    assert (only.include_usage, only.continuous_usage) == (False, False)
    assert (both.include_usage, both.continuous_usage) == (True, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Either prompt or prompt_embeds must be provided"),
        ({"prompt": ""}, "Either prompt or prompt_embeds must be provided"),
        ({"prompt": []}, "Either prompt or prompt_embeds must be provided"),
        ({"prompt": ["hello", ""]}, "cannot be empty"),
        ({"prompt": [[]]}, "cannot be empty"),
        ({"prompt": 5}, "expected a string"),
        ({"prompt": [1, "a"]}, "expected a string"),
        ({"prompt": [True]}, "expected a string"),
        ({"prompt": [1.5]}, "expected a string"),
        ({"prompt": [VOCABULARY_SIZE]}, "Token id 32000 is out of vocabulary"),
        ({"prompt": [[1], [-1]]}, "negative"),
        ({"prompt": [5] * 85}, "maximum context length is 100 tokens"),
        ({"prompt": [5] * 101, "max_tokens": 1}, "maximum context length is 100 tokens"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens must be at least 1"),
        ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "x", "n": 0}, "n must be at least 1"),
        ({"prompt": "x", "min_tokens": 17}, "less than or equal to max_tokens=16"),
        ({"prompt": "x", "min_tokens": -1}, "greater than or equal to 0"),
        ({"prompt": "x", "temperature": -1}, "temperature must be non-negative"),
        ({"prompt": "x", "stop": [""]}, "stop cannot contain an empty string"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "only be defined when `stream=True`"),
        ({"prompt": "x", "echo": True}, "`echo` is not simulated"),
        ({"prompt": "x", "logprobs": 0}, "`logprobs` is not simulated"),
        ({"prompt": "x", "prompt_logprobs": 1}, "`prompt_logprobs` is not simulated"),
        ({"prompt": "x", "suffix": "y"}, "`suffix` is not simulated"),
        ({"prompt": "x", "use_beam_search": True}, "`use_beam_search` is not simulated"),
    ],
)
def test_what_cannot_be_served_is_refused_with_400(body: dict[str, Any], words: str) -> None:
    error = refusal(**body)

    assert error.status == 400
    assert words in str(error)


def test_the_whole_context_can_be_used() -> None:
    assert completion(prompt=[5] * 84).max_tokens == 16


def test_another_model_is_404() -> None:
    error = refusal(prompt="x", model="other")

    assert (error.status, error.kind, error.param) == (404, "NotFoundError", "model")
    assert str(error) == "The model `other` does not exist."


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"prompt": "x", "prompt"', b"[" * 100_000]
)
def test_what_is_no_json_object_is_400(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        RULES.completion(data)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [{"content": "hello"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
    ],
)
def test_a_chat_without_readable_messages_is_400(messages: Any) -> None:
    with pytest.raises(ApiError) as caught:
        chat(messages=messages)
    assert caught.value.status == 400


def test_errors_have_vllms_shape() -> None:
    error = json.loads(refusal(prompt="x", model="other").body())

    assert error == {
        "error": {
            "message": "The model `other` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }
