"""Prefill's token as the beginning of an answer, and decode's answer as its end."""

import json
from typing import Any

import pytest

from pd_proxy.errors import BrokenReplyError, NotContinuedError
from pd_proxy.protocol import first_token
from pd_proxy.protocol.continued import Begun, PartRewriter, end_offset, joined
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.first_token import FirstToken, held_back, spans
from pd_proxy.protocol.generation import Generation, parse
from pd_proxy.protocol.rewrite import Cleaning


def generation(**fields: Any) -> Generation:
    return parse(Endpoint.COMPLETIONS, json.dumps({"prompt": "x", **fields}).encode())


def answer(text: str = "Once", reason: str = "length", **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}
    choice |= {"prompt_token_ids": [5, 6], "token_ids": [7], **more}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    return json.dumps({"id": "cmpl-1", "created": 100, "choices": [choice], "usage": usage}).encode()


def first(text: str = "Once", **fields: Any) -> FirstToken:
    return first_token.read(generation(**fields), answer(text))


def rest(created: int = 101, **choice: Any) -> bytes:
    found = {
        "index": 0,
        "text": " upon",
        "logprobs": None,
        "finish_reason": None,
        "stop_reason": None,
        "token_ids": None,
    }
    return (
        b"data: "
        + json.dumps({"id": "cmpl-1", "created": created, "choices": [{**found, **choice}]}).encode()
        + b"\n\n"
    )


def rewriter(
    begun: Begun | None = None, engine_id: str = "1", endpoint: Endpoint = Endpoint.COMPLETIONS
) -> PartRewriter:
    return PartRewriter(begun or Begun(1, "1", b"100"), engine_id, Cleaning(endpoint))


def events(data: bytes) -> list[Any]:
    return [json.loads(block.removeprefix(b"data: ")) for block in data.split(b"\n\n") if block]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "incomplete_text"), ("\ufffd", "incomplete_text"), ("a\ufffd", "incomplete_text"), ("ü", None)],
)
def test_a_token_that_is_no_whole_text_is_held_back(text: str, reason: str | None) -> None:
    assert held_back(generation(), first(text)) == reason


@pytest.mark.parametrize(
    ("text", "stops", "found"),
    [
        ("the", ("end",), True),  # "e" may be its beginning
        ("the", ("ex", "hex"), True),
        ("the", ("x", "the"), False),  # one character cannot span, and the whole would have ended the answer
        ("the", ("thee",), True),
        ("the", ("then", "zzz"), True),
        ("the", ("abc",), False),
        ("the", (), False),
    ],
)
def test_a_stop_string_may_span_the_border(text: str, stops: tuple[str, ...], *, found: bool) -> None:
    assert spans(text, stops) is found


def test_what_a_parser_told_apart_is_held_back() -> None:
    chat = parse(Endpoint.CHAT, b'{"messages": [{"role": "user", "content": "x"}]}')
    message: dict[str, Any] = {"role": "assistant", "content": None, "reasoning": "Well"}
    body = {
        "id": "1",
        "created": 1,
        "prompt_token_ids": [5],
        "choices": [{"message": message, "finish_reason": "length", "token_ids": [7]}],
    }
    assert held_back(chat, first_token.read(chat, json.dumps(body).encode())) == "reasoning"
    message |= {"content": "Well", "reasoning": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 0}}
    assert held_back(chat, first_token.read(chat, json.dumps({**body, "usage": usage}).encode())) == "reasoning"
    assert held_back(chat, first_token.read(chat, json.dumps(body).encode())) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"{}", b'{"choices": []}', b"data: [DONE]\n\n", answer(token_ids=None), answer(token_ids=[1, 2])],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_a_token_is_broken(body: bytes, *, stream: bool) -> None:
    with pytest.raises(BrokenReplyError):
        first_token.read(generation(stream=stream), body)


def test_both_parts_are_one_answer() -> None:
    behind = {"text": " upon", "token_ids": None, "prompt_token_ids": None, "finish_reason": "stop", "stop_reason": 5}
    body = json.loads(answer()) | {"created": 101, "choices": [{"index": 0, "logprobs": None, **behind}]}
    body["usage"] = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    found = json.loads(joined(generation(), first(), json.dumps(body).encode()))
    assert found["choices"] == [{"index": 0, "logprobs": None, **behind, "text": "Once upon"}]
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert (found["id"], found["created"]) == ("cmpl-1", 100)


def test_the_prompts_text_is_prefills_because_decode_got_token_ids() -> None:
    asked = parse(Endpoint.CHAT, b'{"messages": [{"role": "user", "content": "x"}], "return_prompt_text": true}')
    message = {"role": "assistant", "content": "Once"}

    def said(text: str | None) -> bytes:
        return json.dumps({**json.loads(answer(message=message)), "prompt_text": text}).encode()

    found = json.loads(joined(asked, first_token.read(asked, said("<user>x")), said(None)))
    assert found["prompt_text"] == "<user>x"
    assert found["choices"][0]["message"]["content"] == "OnceOnce"


def test_log_probabilities_of_the_first_token_are_prefills() -> None:
    before = {"text_offset": [0], "token_logprobs": [-1.5], "tokens": ["Once"], "top_logprobs": [{"Once": -1.5}]}
    behind = {
        "text_offset": [0, 5],
        "token_logprobs": [-2, -3],
        "tokens": [" upon", " a"],
        "top_logprobs": [None, None],
    }
    asked = generation(logprobs=1)
    one = first_token.read(asked, answer(logprobs=before))
    found = json.loads(joined(asked, one, answer(" upon a", logprobs=behind)))["choices"][0]["logprobs"]
    assert found["text_offset"] == [0, 4, 9]
    assert found["tokens"] == ["Once", " upon", " a"]
    assert found["token_logprobs"] == [-1.5, -2, -3]
    assert end_offset(one.logprobs) == 4


def test_a_stream_goes_on_under_its_own_time_and_passes_unread_then() -> None:
    stream = rewriter()
    assert stream.by_chunks is False
    (one,) = events(stream.feed(rest()))
    assert (one["created"], one["choices"][0]["text"]) == (100, " upon")
    assert bool(stream.by_chunks)
    assert (stream.secret, stream.put) == (b'"created":101', b'"created":100')
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    data = (
        b"data: "
        + json.dumps({"created": 101, "choices": [], "usage": usage}, separators=(",", ":")).encode()
        + b"\n\n"
    )
    assert events(stream.feed(data))[0] == {
        "created": 100,
        "choices": [],
        "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
    }


def test_another_id_is_not_seen() -> None:
    stream = rewriter(engine_id="other")
    data = rest().replace(b"cmpl-1", b"cmpl-other")
    assert events(stream.feed(data) + stream.feed(data)) == events(rest(created=100) * 2)


def test_chat_says_once_who_speaks() -> None:
    stream = rewriter(endpoint=Endpoint.CHAT)
    role = b'data: {"created":100,"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    word = b'data: {"created":100,"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    assert events(stream.feed(role + word)) == events(word)


@pytest.mark.parametrize(
    "data",
    [b'data: {"error": {"message": "no"}}\n\n', rest(finish_reason="stop", stop_reason="pd: prefill was aborted")],
)
def test_decode_that_cannot_go_on_says_so_before_the_client_has_anything_of_it(data: bytes) -> None:
    with pytest.raises(NotContinuedError):
        rewriter().feed(data)
    stream = rewriter()
    stream.feed(rest())
    assert stream.feed(data)


def test_what_the_client_has_is_skipped() -> None:
    stream = rewriter(Begun(3, "1", b"100", None, 7, 2))
    given = [(" upon", [1]), (" a", [2]), (" time", [3])]
    shown = events(b"".join(stream.feed(rest(text=text, token_ids=ids)) for text, ids in given))
    assert [event["choices"][0]["text"] for event in shown] == [" time"]


def test_a_token_without_text_is_a_chunk_of_its_own() -> None:
    stream = rewriter(Begun(1, "1", b"100", 0))
    assert len(events(stream.feed(rest() + rest(text="") + rest(text="\u00fc")))) == 3
