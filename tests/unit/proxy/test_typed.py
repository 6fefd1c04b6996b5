"""Streams of `/v1/responses`: what clients may see and when, wherever the network splits them."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts import sse
from pd_proxy.errors import BrokenReplyError, DisconnectedError, FailedResponseError
from pd_proxy.protocol.typed import CHECKED_EVENTS, TypedRewriter

SECRET = b"___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_"
UUID = "resp_0123456789abcdef0123456789abcdef"
ENGINE_ID = SECRET.decode() + UUID

# Things that a model may say and a proxy may stumble over.
TRAPS = [
    "",
    "h\u00e9\U0001d11e",
    "data: [DONE]",
    "\n\n",
    '"response":',
    "response",
    "error",
    "response.completed",
    "[DONE]",
]


def event(kind: str, **fields: Any) -> bytes:
    return sse.encode_event(json.dumps({"type": kind} | fields, ensure_ascii=False), kind)


def response(kind: str, number: int, **fields: Any) -> bytes:
    """An event that holds the response so far."""
    held = {"id": ENGINE_ID, "object": "response", "kv_transfer_params": None} | fields
    return event(f"response.{kind}", response=held, sequence_number=number)


def delta(text: str, number: int) -> bytes:
    return event("response.output_text.delta", delta=text, item_id="msg_1", sequence_number=number)


def read(data: bytes) -> list[tuple[str, Any]]:
    decoder = sse.Decoder()
    found = [(item.name, json.loads(item.data)) for item in decoder.feed(data) if isinstance(item, sse.Event)]
    assert not decoder.incomplete
    return found


OPENING = response("created", 0, status="in_progress") + response("in_progress", 1, status="in_progress")
DELTAS = b"".join(delta(text, 2 + number) for number, text in enumerate(TRAPS))
LAST = response("completed", 2 + len(TRAPS), status="completed", kv_transfer_params={"remote_host": "10.0.0.1"})
STREAM = OPENING + DELTAS + LAST


def clean(kind: str, number: int, status: str) -> tuple[str, Any]:
    return kind, {
        "type": kind,
        "response": {"id": UUID, "object": "response", "status": status},
        "sequence_number": number,
    }


EXPECTED = [
    clean("response.created", 0, "in_progress"),
    clean("response.in_progress", 1, "in_progress"),
    *read(DELTAS),
]
END = [clean("response.completed", 2 + len(TRAPS), "completed")]


def test_a_stream_split_at_every_byte_comes_out_the_same_and_without_addresses() -> None:
    for cut in range(len(STREAM) + 1):
        rewriter = TypedRewriter(SECRET)
        out = rewriter.feed(STREAM[:cut]) + rewriter.feed(STREAM[cut:])
        assert read(out) == EXPECTED
        assert read(rewriter.end) == END
        assert b"10.0.0" not in out + rewriter.end
        assert (rewriter.done, rewriter.failed, rewriter.incomplete) == (True, False, False)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_in_pieces_of_any_size_comes_out_the_same(size: int, end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    rewriter = TypedRewriter(SECRET)
    out = b"".join(rewriter.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert read(out) == EXPECTED
    assert read(rewriter.end) == END


@given(st.lists(st.text(), max_size=5), st.lists(st.integers(0, 2000), max_size=5))
def test_what_the_model_says_is_never_touched(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(delta(text, number) for number, text in enumerate(texts))
    rewriter = TypedRewriter(SECRET)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    out = b"".join(rewriter.feed(stream[a:b]) for a, b in itertools.pairwise(edges))
    assert read(out) == read(stream)
    assert not rewriter.done


def test_the_opening_waits_for_the_first_event_that_the_engine_made() -> None:
    # The server writes it before the engine knows of the request.
    rewriter = TypedRewriter(SECRET)
    assert rewriter.feed(OPENING) == b""
    assert not rewriter.done
    assert read(rewriter.feed(delta("x", 2))) == [*EXPECTED[:2], *read(delta("x", 2))]


@pytest.mark.parametrize("kind", ["completed", "incomplete"])
def test_a_response_without_a_word_is_an_answer(kind: str) -> None:
    rewriter = TypedRewriter(SECRET)
    first = rewriter.feed(OPENING + response(kind, 2))
    rewriter.check_first(first)
    assert [name for name, _ in read(first + rewriter.end)] == [
        "response.created",
        "response.in_progress",
        f"response.{kind}",
    ]


@pytest.mark.parametrize(
    "last",
    [
        response("failed", 2, error={"code": "server_error", "message": f"lost {ENGINE_ID} at 10.0.0.2:8000"}),
        event("error", code=None, message=f"lost {ENGINE_ID} at 10.0.0.2:8000", param=None, sequence_number=2),
        sse.encode_event(json.dumps({"error": {"message": f"lost {ENGINE_ID} at 10.0.0.2:8000", "code": 500}})),
    ],
    ids=["failed", "error", "error as elsewhere"],
)
def test_a_failure_is_the_end_and_before_the_first_token_an_error_with_a_status(last: bytes) -> None:
    rewriter = TypedRewriter(SECRET, ("10.0.0.2:8000",))
    first = rewriter.feed(OPENING + last)
    with pytest.raises(FailedResponseError) as caught:
        rewriter.check_first(first)
    assert caught.value.status == 502
    assert caught.value.message.startswith("lost resp_")
    assert "10.0.0" not in caught.value.message

    later = TypedRewriter(SECRET, ("10.0.0.2:8000",))
    later.check_first(later.feed(OPENING + delta("x", 2)))
    assert later.feed(last) == b""
    assert (later.done, later.failed) == (True, True)
    assert b"lost" in later.end
    assert b"10.0.0" not in later.end


def test_a_null_error_in_a_response_is_none() -> None:
    rewriter = TypedRewriter(b"")
    rewriter.feed(delta("x", 0) + response("completed", 1, error=None))
    assert (rewriter.done, rewriter.failed) == (True, False)


def test_the_other_endpoints_end_mark_does_not_end_a_response() -> None:
    rewriter = TypedRewriter(b"")
    rewriter.feed(OPENING + delta("x", 2))
    with pytest.raises(BrokenReplyError):
        rewriter.feed(b"data: [DONE]\n\n")


def test_nothing_follows_the_last_event() -> None:
    rewriter = TypedRewriter(b"")
    rewriter.feed(delta("x", 0) + response("completed", 1) + b"data: [DONE]\n\n" + delta("y", 2))
    assert b"completed" in rewriter.end
    assert rewriter.feed(delta("z", 3)) == b""


@pytest.mark.parametrize(
    "bad", [b"event: x\ndata: {\n\n", b'data: {"type":1}\n\n', b'data: {"type":"a","response":[]}\n\n']
)
def test_an_event_that_must_be_looked_into_and_is_none_is_not_passed_on(bad: bytes) -> None:
    with pytest.raises(BrokenReplyError):
        TypedRewriter(b"").feed(bad)


def test_a_comment_says_nothing_about_the_engine() -> None:
    rewriter = TypedRewriter(b"")
    assert rewriter.feed(b": ping\n\n" + OPENING) == b""
    assert rewriter.feed(delta("x", 2)).startswith(b": ping\n\nevent: response.created\n")


@pytest.mark.parametrize(("passed", "number"), [(OPENING + delta("x", 2) + delta("y", 3), 4), (b"", 0)])
def test_the_error_event_is_of_this_api_and_numbered_as_the_next_one(passed: bytes, number: int) -> None:
    rewriter = TypedRewriter(b"")
    rewriter.feed(passed)
    [(name, body)] = read(rewriter.error_event(DisconnectedError("decode-0 closed the connection", param="p")))
    assert name == "error"
    assert body == {
        "type": "error",
        "code": "bad_gateway",
        "message": "decode-0 closed the connection",
        "param": "p",
        "sequence_number": number,
    }


def test_only_parts_of_the_output_are_progress() -> None:
    rewriter = TypedRewriter(SECRET)
    assert rewriter.moves(rewriter.feed(OPENING + delta("a", 2)))
    for still in (response("in_progress", 3), event("ping"), event("response.output_item.added", item={})):
        assert not rewriter.moves(rewriter.feed(still))
    assert rewriter.moves(rewriter.feed(delta("", 4)))
    assert rewriter.moves(rewriter.feed(LAST)), "the end"


def test_events_that_are_held_back_do_not_fill_memory() -> None:
    rewriter = TypedRewriter(SECRET)
    held = response("in_progress", 1, instructions="x" * 1_000_000)
    for _ in range(16):
        assert rewriter.feed(held) == b""
    with pytest.raises(BrokenReplyError, match="without a part of the output"):
        rewriter.feed(held)


def test_the_last_event_needs_no_empty_line_where_the_answer_ends() -> None:
    rewriter = TypedRewriter(SECRET)
    out = rewriter.feed(STREAM.rstrip()) + rewriter.finish()
    assert rewriter.done
    assert read(out + rewriter.end)[-1][0] == "response.completed"


def test_a_part_of_the_last_event_is_no_end() -> None:
    rewriter = TypedRewriter(SECRET)
    rewriter.feed(STREAM.rstrip()[:-1])
    assert (rewriter.finish(), rewriter.done) == (b"", False)


def test_a_part_of_an_event_is_not_passed_on() -> None:
    rewriter = TypedRewriter(SECRET)
    rewriter.feed(OPENING + delta("a", 2))
    with pytest.raises(BrokenReplyError, match="not valid JSON"):
        rewriter.feed(delta("b", 3).replace(b"}", b""))


@pytest.mark.parametrize("broken", [b"data: {oops}", b'data: {"type":"response.output_text.delta","delta":"a"}}'])
def test_an_event_that_ends_like_an_object_and_is_none_is_not_passed_on(broken: bytes) -> None:
    named = b"event: response.output_text.delta\n" + broken + b"\n\n"
    for events in (1, CHECKED_EVENTS - 1):
        rewriter = TypedRewriter(b"")
        for number in range(events):
            rewriter.feed(delta("a", number))
        with pytest.raises(BrokenReplyError, match="not valid JSON"):
            rewriter.feed(named)
