"""The changes to an answer, and that nothing else changes, wherever the network splits it."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from pd_contracts import sse
from pd_proxy.errors import BrokenReplyError, RefusedInStreamError
from pd_proxy.protocol import rewrite
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.rewrite import Cleaning, StreamRewriter
from pd_proxy.protocol.usage import Cached

COMPLETIONS = "/v1/completions"
SECRET = b"___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_"
UUID = "0123456789abcdef0123456789abcdef"
ENGINE_ID = "cmpl-" + SECRET.decode() + UUID

# Things that a model may say and a proxy may stumble over.
TRAPS = [
    "",
    "hé€𝄞",
    "data: [DONE]",
    "\n\n",
    "\r\n\r\n",
    '"kv_transfer_params"',
    '"error"',
    "error",
    "[DONE]",
    "a\u2028b",
]


def event(text: str, **fields: Any) -> bytes:
    return sse.encode_event(json.dumps({"id": ENGINE_ID, "choices": [{"text": text}]} | fields, ensure_ascii=False))


def clean(text: str, **fields: Any) -> dict[str, Any]:
    return {"id": f"cmpl-{UUID}", "choices": [{"text": text}]} | fields


def events(data: bytes) -> list[Any]:
    decoder = sse.Decoder()
    found = [json.loads(item.data) for item in decoder.feed(data) if isinstance(item, sse.Event)]
    assert not decoder.incomplete
    return found


STREAM = (
    b": hello\n\n"
    + b"".join(event(text) for text in TRAPS)
    + event("last", kv_transfer_params={"remote_host": "10.0.0.1"})
    + sse.encode_event(json.dumps({"error": {"message": f"lost {ENGINE_ID} at 10.0.0.2:8000", "code": 500}}))
    + b"data: [DONE]\n\n"
)
EXPECTED = [
    *map(clean, TRAPS),
    clean("last"),
    {"error": {"message": f"lost cmpl-{UUID} at [address]", "code": 500}},
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 1_000_000])
def test_a_stream_in_pieces_of_any_size_comes_out_the_same(size: int, end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    rewriter = StreamRewriter(SECRET)
    out = b"".join(rewriter.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert events(out) == EXPECTED
    assert rewriter.done
    assert rewriter.failed
    assert not rewriter.incomplete


@given(
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=8, max_size=8),
    st.integers(1, 40),
)
def test_lines_may_begin_and_end_in_every_way_of_the_standard(mark: bytes, ends: list[bytes], size: int) -> None:
    stream, kinds = mark, itertools.cycle(ends)
    for line in STREAM.split(b"\n")[:-1]:
        end = next(kinds)
        # A CR and an LF behind it would be one line end.
        stream += line + (b"\r" if not line and stream.endswith(b"\r") and end == b"\n" else end)
    rewriter = StreamRewriter(SECRET)
    out = b"".join(rewriter.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert rewriter.done
    assert events(out) == EXPECTED


@pytest.mark.parametrize(
    ("written", "passed"),
    [
        (b": from 10.0.0.1:80\n\n", b": from [address]\n\n"),
        (b'data: {"choices":[{"text":"10.0.0.1"}]}\n: at kv:6379\n\n', b': at [address]\ndata: {"choices":[{"text":"10.0.0.1"}]}\n\n'),
        (b"event: error\ndata: lost [fd00::1]:80\n\n", b"event: error\ndata: lost [address]\n\n"),
        (b'event: error\ndata: {"detail":"lost fd00::1"}\n\n', b'event: error\ndata: {"detail":"lost [address]"}\n\n'),
        (b'data: {"object":"error","message":"kv:6379"}\n\n', b'data: {"object":"error","message":"[address]"}\n\n'),
        (b'data: {"type":"error","message":"kv:6379"}\n\n', b'data: {"type":"error","message":"[address]"}\n\n'),
        (b'data: {"error":{\ndata: "message":"kv:6379"}}\n\n', b'data: {"error":{"message":"[address]"}}\n\n'),
        (b"id: kv:6379\nretry: 5\n\n", b"id: [address]\nretry: 5\n\n"),
        (b'data: {"choices":[{"text":"10.0.0.1"}],"error":null}\n\n', b'data: {"choices":[{"text":"10.0.0.1"}],"error":null}\n\n'),
    ],
)  # fmt: skip
def test_all_that_a_server_and_not_its_model_says_in_a_stream_loses_addresses(written: bytes, passed: bytes) -> None:
    plain = event("kv:6379")
    for stream, expected in ((written, passed), (plain + written, plain + passed), (written + plain, passed + plain)):
        rewriter = StreamRewriter(b"")
        assert rewriter.feed(stream) == expected
        assert rewriter.failed == (b"error" in written and b"null" not in written)


@pytest.mark.parametrize(
    "data",
    [b"no answer of 10.0.0.1:80", b'["lost"]', b'"lost"', b"null", b"5", b"<html>", b'{"choices":[{"text":"\xff"}]}', b'{"error":"\xff"}'],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", event("x"), event("é")])
def test_an_event_that_no_client_can_read_is_an_error(before: bytes, data: bytes) -> None:
    for end in (b"\n\n", b"\n\n" + event("y")):
        with pytest.raises(BrokenReplyError, match="is not"):
            StreamRewriter(b"").feed(before + b"data: " + data + end)


def test_an_event_without_data_is_none() -> None:
    assert StreamRewriter(b"").feed(event("x") + b"data:\n\n" + event("y")).endswith(event("y"))


def test_a_stream_split_at_every_byte_comes_out_the_same() -> None:
    for cut in range(len(STREAM) + 1):
        rewriter = StreamRewriter(SECRET)
        out = rewriter.feed(STREAM[:cut]) + rewriter.feed(STREAM[cut:])
        assert events(out) == EXPECTED
        assert rewriter.done


@given(st.lists(st.text(), max_size=5), st.lists(st.integers(0, 2000), max_size=5))
def test_what_the_model_says_is_never_touched(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(map(event, texts))
    rewriter = StreamRewriter(SECRET)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    out = b"".join(rewriter.feed(stream[a:b]) for a, b in itertools.pairwise(edges))
    assert events(out) == [clean(text) for text in texts]
    assert not rewriter.done


def test_without_a_secret_plain_events_pass_as_the_same_bytes() -> None:
    stream = event("x") + event("y")
    assert StreamRewriter(b"").feed(stream) == stream


def test_every_output_ends_at_an_event_so_that_an_error_event_can_follow() -> None:
    rewriter = StreamRewriter(SECRET)
    assert rewriter.feed(b'data: {"id":') == b""
    assert rewriter.incomplete
    assert rewriter.feed(b"1}\n\ndata: half") == b'data: {"id":1}\n\n'
    assert rewriter.incomplete


def test_nothing_follows_the_end_mark() -> None:
    rewriter = StreamRewriter(b"")
    assert rewriter.feed(event("x") + b"data: [DONE]\n\ndata: more\n\n") == event("x")
    assert rewriter.feed(b"data: more\n\n") == b""


def test_what_looks_like_the_end_mark_within_an_event_of_two_lines_is_part_of_that_event() -> None:
    rewriter = StreamRewriter(b"")
    failure = b"event: error\ndata: text"
    assert rewriter.feed(failure + b"\ndata: [DONE]\n\n") == failure + b"  [DONE]\n\n"
    assert not rewriter.done
    assert rewriter.feed(event("x") + b"data: [DONE]\n\n") == event("x")
    assert rewriter.done


def test_parameters_in_choices_are_removed_too() -> None:
    choices = [{"text": "x", "kv_transfer_params": {"h": "10.0.0.1"}}, {"text": "y"}]
    out = StreamRewriter(b"").feed(sse.encode_event(json.dumps({"choices": choices})))
    assert events(out) == [{"choices": [{"text": "x"}, {"text": "y"}]}]


def test_an_event_with_parameters_that_cannot_be_read_is_not_passed_on() -> None:
    with pytest.raises(BrokenReplyError):
        StreamRewriter(b"").feed(b'data: {"kv_transfer_params": {\n\n')


def test_an_event_without_end_does_not_fill_memory() -> None:
    rewriter = StreamRewriter(b"")
    rewriter.feed(b"x" * rewrite.MAX_EVENT_BYTES)
    with pytest.raises(BrokenReplyError):
        rewriter.feed(b"x")


def test_a_whole_answer_loses_address_and_parameters_and_nothing_else() -> None:
    body = json.dumps(
        {
            "id": ENGINE_ID,
            "x": 1.10,
            "kv_transfer_params": {"remote_host": "10.0.0.1"},
            "u": "é",
            "choices": [{"text": "x"}],
        }
    ).encode()
    assert json.loads(rewrite.reply(body, Cleaning(Endpoint.COMPLETIONS, SECRET), "decode-0")) == {
        "id": f"cmpl-{UUID}",
        "x": 1.10,
        "u": "é",
        "choices": [{"text": "x"}],
    }


def test_a_whole_answer_without_either_passes_as_the_same_bytes() -> None:
    body = b'{ "id" : "cmpl-1",\n "choices": [ {"text":"x" , "y":[1.0, 2e5]} ] }'
    assert rewrite.reply(body, Cleaning(Endpoint.COMPLETIONS), "decode-0") == body


@pytest.mark.parametrize(
    "body", [b"", b" \n", b"[]", b"null", b"{", b"\xff", b"{}", b"<html>busy</html>", b'{"id": "cmpl-1"}']
)
def test_what_is_no_answer_is_broken(body: bytes) -> None:
    with pytest.raises(BrokenReplyError):
        rewrite.reply(body, Cleaning(Endpoint.COMPLETIONS, SECRET), "decode-0")


def test_a_streams_usage_tells_what_prefill_found_cached() -> None:
    def stream(cached: int) -> bytes:
        usage = {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": cached}}
        said = {"choices": [{"text": '"cached_tokens": 7'}], "usage": None}
        return b"".join(sse.encode_event(json.dumps(event)) for event in (said, {"choices": [], "usage": usage}))

    rewriter = StreamRewriter(b"", cached=Cached(Raw(b'{"cached_tokens":16}'), 16))
    data = stream(999)

    out = b"".join(rewriter.feed(data[at : at + 7]) for at in range(0, len(data), 7))

    events = [json.loads(item.data) for item in sse.Decoder().feed(out) if isinstance(item, sse.Event)]
    assert events == [json.loads(item.data) for item in sse.Decoder().feed(stream(16)) if isinstance(item, sse.Event)]
    assert StreamRewriter(b"").feed(data) == data


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":1}}', "m"),
        (b'{"object":"error","message":"m","code":400}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"detail":"m"}', "m"),
        (b"nonsense", None),
        (b"[1]", None),
        (b'{"error":[1]}', None),
    ],
)
def test_error_objects_of_every_shape_are_understood(body: bytes, message: str | None) -> None:
    assert rewrite.error_fields(body).get("message") == message


@pytest.mark.parametrize(("code", "status"), [(400, 400), (404, 404), (500, 502), ("x", 502), (None, 502), (200, 502)])
def test_an_error_in_the_first_event_becomes_a_status(code: Any, status: int) -> None:
    first = sse.encode_event(json.dumps({"object": "error", "error": {"message": "m", "code": code}}))
    with pytest.raises(RefusedInStreamError) as caught:
        rewrite.raise_first_error(first)
    assert (caught.value.status, caught.value.message) == (status, "m")


def test_an_answer_about_errors_is_no_error() -> None:
    rewrite.raise_first_error(event('"error"'))
    rewrite.raise_first_error(event("x", finish_reason="error"))


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (b'data: {"choices":[]}\n\n', False),
        (b': hello\n\nevent: message_start\ndata: {"type":"message_start"}\n\n', True),
        (b'event: ping\ndata: {"type": "ping"}\n\n', False),
        (b": hello\n\ndata:\n\nid: 1\n\n", False),
        (b"data: []\n\n", False),
    ],
)
def test_what_only_keeps_a_connection_alive_is_no_progress(block: bytes, says: bool) -> None:
    assert rewrite.has_event(block) is says


BROKEN = [
    b'data: {"choices":[{"text":"a\n\n',
    b'data:{"choices":[{"text":"a"}]\n\n',
    b'data: {"choices":[{"te\ndata: xt"}\n\n',
    b'data: {"choices":[{oops at 10.1.2.3:80}\n\n',
    b'data: {"choices":[{"text":"a}\n\n',
    b'data: {"choices":[{"text":"a"}]}}\n\n',
    b'data: {"choices":[{"text":"a"}]}{"choices":[{"text":"b"}]}\n\n',
    b'data: {"choices":[{"text":"a"b"}]}\n\n',
    b"data: {oops}\n\n",
]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("kind", [StreamRewriter, rewrite.ForwardedRewriter])
def test_an_event_that_is_a_part_of_an_object_is_not_passed_on(broken: bytes, kind: Any) -> None:
    for stream in (broken, event("x") + broken, broken + event("x")):
        with pytest.raises(BrokenReplyError, match="not valid JSON"):
            kind(b"").feed(stream)


def test_an_event_with_numbers_that_only_python_reads_passes() -> None:
    said = b'data: {"choices":[{"text":"a","logprobs":[NaN,-Infinity]}]}\n\n'
    assert StreamRewriter(b"").feed(said) == said
    assert StreamRewriter(b"").feed(event("x") + said) == event("x") + said


@pytest.mark.parametrize("size", [7, 1_000_000])
def test_an_event_without_choices_is_a_servers_and_loses_addresses(size: int) -> None:
    stream = event("x") + b'data: {"detail":"lost 10.1.2.3:80"}\n\n' + event("10.1.2.3")
    rewriter = StreamRewriter(b"")
    out = b"".join(rewriter.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    assert out == event("x") + b'data: {"detail":"lost [address]"}\n\n' + event("10.1.2.3")


@pytest.mark.parametrize("end", ["", "\n", "\r", "\r\n"])
def test_the_end_mark_needs_no_empty_line_where_the_answer_ends(end: str) -> None:
    for first in (b"", event("x")):
        rewriter = StreamRewriter(b"")
        out = rewriter.feed(first + b"data: [DONE]" + end.encode())
        assert (out + rewriter.finish(), rewriter.done) == (first, True)
        assert rewriter.finish() == b""


@pytest.mark.parametrize(
    "rest", [b"", b"data: [DONE", b'data: {"choices":[{"text":"b"}]}', b'data: {"cho', b": [DONE]"]
)
def test_what_else_a_stream_ends_with_is_no_end(rest: bytes) -> None:
    rewriter = StreamRewriter(b"")
    rewriter.feed(event("x") + rest)
    assert (rewriter.finish(), rewriter.done) == (b"", False)


@pytest.mark.parametrize(
    ("data", "moves"),
    [
        (b'{"choices":[{"text":""}]}', True),
        (b'{"choices" : [ {"text":""}]}', True),
        (b'{"choices":\t[{"delta":{}}]}', True),
        (b'{"choices":null}', False),
        (b'{"choices" : [ ]}', False),
        (b'{"choices":{"0":{}}}', False),
    ],
)
def test_a_choice_in_any_spelling_is_progress(data: bytes, moves: bool) -> None:
    rewriter = StreamRewriter(b"")
    assert rewriter.moves(rewriter.feed(b"data: " + data + b"\n\n")) is moves
    assert not rewriter.moves(rewriter.feed(b": " + data + b"\n\n")), "a comment"
