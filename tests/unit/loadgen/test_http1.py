"""The client's side of HTTP/1.1: responses in any form and split anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_loadgen.client.address import Target
from pd_loadgen.client.http1 import ProtocolError, Response, TruncatedError, request_bytes

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1A;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n7\r\n\r\n0\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n"
)
CHUNKED_BODY = b"helloabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n"


def read(parts: list[bytes]) -> tuple[Response, bytes]:
    response = Response()
    return response, b"".join(map(response.feed, parts))


def test_a_chunked_body_is_read_wherever_it_is_split() -> None:
    for cut in range(len(CHUNKED) + 1):
        response, body = read([CHUNKED[:cut], CHUNKED[cut:]])
        assert (response.complete, body) == (True, CHUNKED_BODY), cut


def test_a_chunked_body_is_read_byte_by_byte() -> None:
    response, body = read([CHUNKED[number : number + 1] for number in range(len(CHUNKED))])

    assert body == CHUNKED_BODY
    assert response.complete
    assert response.reusable


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_chunks_split_anyhow_give_the_body(chunks: list[bytes], sizes: list[int]) -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    parts: list[bytes] = []
    while wire:
        size = sizes[len(parts) % len(sizes)]
        parts.append(wire[:size])
        wire = wire[size:]

    response, body = read(parts)

    assert body == b"".join(chunks)
    assert response.complete


def test_completion_is_seen_with_the_last_byte_and_not_before() -> None:
    response = Response()
    response.feed(CHUNKED[:-1])
    assert not response.complete
    response.feed(CHUNKED[-1:])
    assert response.complete


def test_each_whole_chunk_is_given_at_once() -> None:
    response = Response()
    response.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    assert response.feed(b"3\r\nabc\r\n") == b"abc"
    assert response.feed(b"3\r\nde") == b"de"  # a token must not wait for the rest of its chunk
    assert response.feed(b"f\r\n2\r\ngh\r\n") == b"fgh"


def test_content_length_ends_the_body() -> None:
    response, body = read([b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nno", b"pe"])

    assert response.head is not None
    assert (response.head.status, body, response.complete, response.reusable) == (404, b"nope", True, True)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"])
def test_an_empty_body_is_complete_with_the_head(head: bytes) -> None:
    assert read([head])[0].complete


def test_without_length_the_body_ends_with_the_connection() -> None:
    response, body = read([b"HTTP/1.0 200 OK\r\n\r\nab", b"c"])
    assert not response.complete

    response.eof()

    assert (response.complete, body, response.reusable) == (True, b"abc", False)


def test_an_interim_answer_is_followed_by_the_real_one() -> None:
    response, body = read([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"])

    assert response.head is not None
    assert (response.head.status, body) == (200, b"x")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nunasked",
    ],
)
def test_a_connection_that_cannot_be_used_again_says_so(head: bytes) -> None:
    response, _ = read([head])

    assert response.complete
    assert not response.reusable


@pytest.mark.parametrize(
    ("wire", "sentence"),
    [
        (b"", "before an answer came"),
        (b"HTTP/1.1 200 OK\r\nContent", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", "in the middle"),
    ],
)
def test_a_connection_that_ends_early_truncates(wire: bytes, sentence: str) -> None:
    response, _ = read([wire])

    with pytest.raises(TruncatedError, match=sentence):
        response.eof()


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nspace : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 9_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"t" * 9_000,
    ],
)
def test_what_is_no_response_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        read([wire])


def test_repeated_headers_are_joined() -> None:
    response, _ = read([b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\nContent-Length: 0\r\n\r\n"])

    assert response.head is not None
    assert response.head.headers["a"] == "1, 2"


def test_a_request_is_complete_and_uncompressed() -> None:
    wire = request_bytes(Target("::1", 80, "/b"), "/v1/completions", b'{"a":1}', {"X-PD-Timing": "1"})
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")

    assert lines[0] == b"POST /b/v1/completions HTTP/1.1"
    assert {b"Host: [::1]:80", b"Content-Length: 7", b"Accept-Encoding: identity", b"X-PD-Timing: 1"} <= set(lines)
    assert body == b'{"a":1}'
