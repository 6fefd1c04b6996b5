"""Request bodies, and which chunks of a stream are tokens."""

import json
from typing import Any

import msgspec
import pytest

from pd_loadgen.client.backends import BACKENDS, Ask, Chat, Completions, Delta, Endpoint, Sampling, UnsuitableError


def completions(**choice: object) -> Delta:
    return Completions().reader().read(json.dumps({"choices": [{"index": 0, **choice}]}))


def chat(finish_reason: str | None = None, **delta: object) -> Delta:
    return Chat().reader().read(json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}))


def test_a_completions_body_asks_for_a_greedy_stream_with_usage() -> None:
    body = json.loads(Completions().body([1, 2], Ask("m", 9, ignore_eos=True, return_token_ids=True)))

    assert body == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 9,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_a_chat_body_has_one_message_and_no_option_that_only_vllm_knows() -> None:
    body = json.loads(Chat().body("hello", Ask("m", 9)))

    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert not {"prompt", "ignore_eos", "return_token_ids"} & set(body)


def test_every_endpoint_has_its_path() -> None:
    assert BACKENDS[Endpoint.COMPLETIONS].path == "/v1/completions"
    assert BACKENDS[Endpoint.CHAT].path == "/v1/chat/completions"


def test_text_is_one_token_and_ids_are_counted() -> None:
    assert completions(text=" a").tokens == 1
    assert completions(text=" a b c", token_ids=[5, 6, 7]).tokens == 3
    assert completions(text=" a b c", token_ids=[5, 6, 7]).token_ids == (5, 6, 7)


def test_an_empty_text_may_be_a_token_whose_bytes_are_no_character_yet() -> None:
    delta = completions(text="", finish_reason=None)

    assert (delta.tokens, delta.blank) == (0, True)


def test_an_empty_last_chunk_may_be_a_token() -> None:
    delta = completions(text="", finish_reason="stop")

    assert (delta.tokens, delta.blank, delta.finish_reason) == (0, True, "stop")


@pytest.mark.parametrize("content", ["", None])
def test_a_chunk_that_only_names_the_role_is_no_token(content: str | None) -> None:
    delta = chat(role="assistant", content=content)

    assert (delta.tokens, delta.blank) == (0, False)


def test_a_role_with_text_is_a_token() -> None:
    assert chat(role="assistant", content="Hi").tokens == 1


@pytest.mark.parametrize(
    "delta",
    [{"content": "x"}, {"reasoning": "x"}, {"reasoning_content": "x"}, {"tool_calls": [{"index": 0}]}],
)
def test_text_reasoning_and_tool_calls_are_tokens(delta: dict[str, Any]) -> None:
    assert chat(**delta).tokens == 1


def test_a_finish_reason_alone_is_no_token() -> None:
    delta = chat("stop")

    assert (delta.tokens, delta.blank, delta.finish_reason) == (0, False, "stop")


def test_a_usage_chunk_is_no_token() -> None:
    delta = (
        Completions()
        .reader()
        .read('{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}')
    )

    assert (delta.tokens, delta.prompt_tokens, delta.output_tokens) == (0, 3, 4)


@pytest.mark.parametrize(
    ("error", "message"),
    [({"message": "lost", "code": 502}, "lost"), ("lost", "lost"), ({"code": 502}, "{'code': 502}")],
)
def test_an_error_chunk_carries_its_message(error: object, message: str) -> None:
    assert Completions().reader().read(json.dumps({"error": error})).error == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"object": "error", "message": "EngineDeadError", "type": "InternalServerError", "code": 500},
            "EngineDeadError",
        ),
        ({"detail": "Internal error"}, "Internal error"),
        ({"error_code": 336000, "error_msg": "Internal error"}, "Internal error"),
        ({"errors": [{"message": "no"}]}, "[{'message': 'no'}]"),
        (
            {"choices": [{"delta": {}, "finish_reason": "error"}]},
            "the engine aborted the request (finish reason error)",
        ),
        ({"choices": [{"text": "", "finish_reason": "abort"}]}, "the engine aborted the request (finish reason abort)"),
        ({"choices": [{"delta": {"content": ""}, "error": {"message": "lost"}}]}, "lost"),
    ],
)
def test_an_error_is_found_under_any_name(data: object, message: str) -> None:
    assert Chat().reader().read(json.dumps(data)).error == message


@pytest.mark.parametrize(
    "data", [{}, {"type": "ping"}, {"choices": []}, {"choices": [], "prompt_filter_results": [{}]}]
)
def test_an_event_that_says_nothing_is_no_chunk_and_no_error(data: object) -> None:
    assert Chat().reader().read(json.dumps(data)) == Delta()


def test_counts_may_be_written_as_fractions_and_texts_and_nan_may_stand_beside_them() -> None:
    counted = Chat().reader().read('{"choices": [], "usage": {"prompt_tokens": 5.0, "completion_tokens": "8"}}')
    beside = Chat().reader().read('{"choices": [{"delta": {"content": "a"}, "logprobs": NaN}]}')

    assert (counted.prompt_tokens, counted.output_tokens) == (5, 8)
    assert (beside.tokens, beside.text) == (1, "a")


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]}, "a"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"refusal": "no"}, "no"),
        ({"function_call": {"arguments": "a"}}, ""),
        ({"role": "assistant", "content": "a"}, "a"),
    ],
)
def test_output_of_every_kind_is_a_token(delta: dict[str, Any], text: str) -> None:
    read = chat(**delta)

    assert (read.tokens, read.text) == (1, text)


@pytest.mark.parametrize("delta", [{"content": "", "tool_calls": []}, {"content": "", "function_call": None}])
def test_lists_and_calls_that_are_empty_are_no_output(delta: dict[str, Any]) -> None:
    read = chat(**delta)

    assert (read.tokens, read.blank) == (0, True)


def test_where_the_server_counts_with_each_chunk_the_growth_is_what_a_chunk_carries() -> None:
    reader = Chat().reader()
    seen = [
        reader.read(
            json.dumps({"choices": [{"delta": delta}], "usage": {"prompt_tokens": 5, "completion_tokens": count}})
        )
        for delta, count in (
            ({"role": "assistant", "content": ""}, 1),
            ({"content": ""}, 1),
            ({"content": " a b c"}, 4),
            ({"content": ""}, 5),
            ({"content": " d"}, 6),
        )
    ]

    assert [(one.tokens, one.exact, one.blank) for one in seen] == [
        (0, False, False),
        (1, True, False),
        (3, True, False),
        (1, True, False),
        (1, True, False),
    ]


@pytest.mark.parametrize("data", ["", "{", "[]", '{"choices": 3}', '{"choices": [{"text": 7}]}'])
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        Completions().reader().read(data)


def test_sampling_and_extra_members_go_into_the_body_and_neutral_values_do_not() -> None:
    ask = Ask("m", 9, sampling=Sampling(temperature=0.5, top_k=20), extra={"priority": 3, "max_tokens": 4})
    body = json.loads(Completions().body("x", ask))

    assert (body["temperature"], body["top_k"], body["priority"], body["max_tokens"]) == (0.5, 20, 3, 4)
    assert not {"top_p", "min_p", "repetition_penalty"} & set(body)


def test_messages_are_for_the_chat_endpoint_and_token_ids_for_the_others() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]

    assert json.loads(Chat().body(messages, Ask("m", 9)))["messages"] == messages
    with pytest.raises(UnsuitableError, match="endpoint chat"):
        Completions().body(messages, Ask("m", 9))
    with pytest.raises(UnsuitableError, match="token ids"):
        Chat().body([1, 2], Ask("m", 9))
