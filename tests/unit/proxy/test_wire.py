"""HTTP/1.1 heads and bodies on the hot path: what is read, what is refused, and bytes cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.protocol.wire import (
    MAX_HEAD_BYTES,
    ChunkedBody,
    EndlessBody,
    FramingError,
    SizedBody,
    answer_head,
    may_become_ours,
    request_head,
    write_chunk,
    write_head,
)

LINES = ["Host: x", "Content-Type: application/json", "Content-Length: 7"]


def head(*lines: str, start: str = "POST /v1/completions HTTP/1.1") -> bytes:
    """A request's head."""
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


def read(data: bytes) -> object:
    """As the front reads it."""
    return request_head(data, data.index(b"\r\n\r\n") + 4)


def test_a_plain_request_is_read() -> None:
    data = head(
        *LINES, "X-Request-ID:  mine \t", "Authorization: Bearer a:b", start="POST /v1/chat/completions HTTP/1.1"
    )
    found = request_head(data + b"{}", len(data))
    assert found is not None
    assert (found.path, found.length, found.keep_alive, found.size) == ("/v1/chat/completions", 7, True, len(data))
    assert found.headers["x-request-id"] == "mine"
    assert found.headers["authorization"] == "Bearer a:b"


def test_so_is_one_for_a_response_but_not_about_one() -> None:
    data = head(*LINES, start="POST /v1/responses HTTP/1.1")
    found = request_head(data, len(data))
    assert found is not None
    assert found.path == "/v1/responses"
    for start in (b"POST /v1/resp", b"POST /v1/", b"PO"):
        assert may_become_ours(start)
    for path in ("responses/resp_1/cancel", "responses/", "responses?x=1"):
        assert read(head(*LINES, start=f"POST /v1/{path} HTTP/1.1")) is None


@pytest.mark.parametrize(("value", "keep_alive"), [("close", False), ("Keep-Alive", True)])
def test_the_client_says_whether_the_connection_stays(value: str, keep_alive: bool) -> None:
    found = request_head(data := head(*LINES, f"Connection: {value}"), len(data))
    assert found is not None
    assert found.keep_alive is keep_alive


@pytest.mark.parametrize(
    "data",
    [
        head(*LINES, start="GET /v1/completions HTTP/1.1"),
        head(*LINES, start="POST /v1/completions?x=1 HTTP/1.1"),
        head(*LINES, start="POST http://x/v1/completions HTTP/1.1"),
        head(*LINES, start="POST /v1/completions HTTP/1.0"),
        head(*LINES, start="POST  /v1/completions HTTP/1.1"),
        head(*LINES[1:]),
        head(*LINES[:2]),
        head(*LINES, "Content-Length: 7"),
        head(*LINES, "content-length: 8"),
        head(*LINES[:2], "Content-Length: 7, 7"),
        head(*LINES[:2], "Content-Length: +7"),
        head(*LINES[:2], "Content-Length: -7"),
        head(*LINES[:2], "Content-Length: 0x7"),
        head(*LINES[:2], "Content-Length: 7 7"),
        head(*LINES[:2], "Content-Length: 1234567890123"),
        head(*LINES, "Transfer-Encoding: chunked"),
        head(*LINES, "Transfer-Encoding: identity"),
        head(*LINES, "Expect: 100-continue"),
        head(*LINES, "Upgrade: h2c"),
        head(*LINES, "Connection: upgrade"),
        head(*LINES, "Connection: close, x"),
        head(*LINES, "Host: y"),
        head(*LINES, "X-Request-Id: a", "x-request-id: b"),
        head(*LINES, "Transfer-Encoding : chunked"),
        head(*LINES, " folded: line"),
        head(*LINES, "\tfolded"),
        head(*LINES, "no colon"),
        head(*LINES, "X: a\nTransfer-Encoding: chunked"),
        head(*LINES, "X: a\rTransfer-Encoding: chunked"),
        head(*LINES, "X: \0"),
        head(*LINES, "X: \xe4"),
        head(*LINES, ": empty"),
    ],
)
def test_what_could_be_read_in_two_ways_is_left_to_others(data: bytes) -> None:
    assert read(data) is None


def test_bytes_without_an_end_may_still_become_a_request_for_tokens() -> None:
    data = head(*LINES)
    assert all(may_become_ours(data[:size]) for size in range(len(data)))
    assert not may_become_ours(b"GET /health")
    assert not may_become_ours(b"POST /v1/e")
    assert not may_become_ours(b"POST /v1/completions".ljust(MAX_HEAD_BYTES, b"x"))


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\rb", "a\0b"])
def test_no_header_can_end_its_line(value: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        write_head("HTTP/1.1 200 OK", {"X": value})


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=12))
def test_chunks_cut_anywhere_are_the_same_body(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(write_chunk(part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    body = ChunkedBody()
    found = b"".join(body.feed(data[start:end]) for start, end in pairwise(edges))
    assert found == b"".join(parts)
    assert body.done
    assert body.reusable


def test_every_single_byte_may_come_alone() -> None:
    data = write_chunk(b"one") + b"0003;name=value\r\ntwo\r\n" + b"0\r\n\r\n"
    body = ChunkedBody()
    assert b"".join(body.feed(data[at : at + 1]) for at in range(len(data))) == b"onetwo"
    assert body.done


@pytest.mark.parametrize(
    "data", [b"x\r\n", b"3\nabc", b"3\r\nabcd\r\n", b"3\r\nabc\n", b"-3\r\n", b"0x3\r\nabc", b" 3\r\nabc", b"1" * 5000]
)
def test_broken_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkedBody().feed(data)


def test_what_follows_a_body_was_not_asked_for() -> None:
    for body, data in ((ChunkedBody(), b"3\r\nabc\r\n0\r\n\r\nHTTP"), (SizedBody(3), b"abcHTTP")):
        assert body.feed(data) == b"abc"
        assert body.done
        assert not body.reusable


def test_an_answers_head_says_how_its_body_ends() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    found = answer_head(answer)
    assert found is not None
    assert (found.status, found.keep_alive, answer[found.size :]) == (200, True, b"hello")
    assert isinstance(found.body, SizedBody)
    chunked = answer_head(b"HTTP/1.1 503 \r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n")
    assert chunked is not None
    assert (chunked.status, chunked.keep_alive, type(chunked.body)) == (503, False, ChunkedBody)
    endless = answer_head(b"HTTP/1.0 200 OK\r\n\r\n")
    assert endless is not None
    assert (endless.keep_alive, type(endless.body)) == (False, EndlessBody)


def test_informational_answers_are_passed_over() -> None:
    assert answer_head(b"HTTP/1.1 100 Continue\r\n\r\n") is None
    found = answer_head(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    assert found is not None
    assert (found.status, found.body.done) == (204, True)


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ".ljust(70_000, b"x"),
    ],
)
def test_answers_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        answer_head(data)
