"""Answers in any form and split anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.http_answers import MAX_HEAD_BYTES, AnswerReader, ProtocolError

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1A;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n7\r\n\r\n0\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n"
)
FRAMED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_BODY = b"helloabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n"


def read(parts: list[bytes]) -> tuple[AnswerReader, bytes]:
    response = AnswerReader()
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
    response = AnswerReader()
    response.feed(CHUNKED[:-1])
    assert not response.complete
    response.feed(CHUNKED[-1:])
    assert response.complete


def test_each_whole_chunk_is_given_at_once() -> None:
    response = AnswerReader()
    response.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    assert response.feed(b"3\r\nabc\r\n") == b"abc"
    assert response.feed(b"3\r\nde") == b"de"  # a token must not wait for the rest of its chunk
    assert response.feed(b"f\r\n2\r\ngh\r\n") == b"fgh"


def test_content_length_ends_the_body() -> None:
    response, body = read([b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nno", b"pe"])

    assert (response.status, body, response.complete, response.reusable) == (404, b"nope", True, True)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"])
def test_an_empty_body_is_complete_with_the_head(head: bytes) -> None:
    assert read([head])[0].complete


def test_without_length_the_body_ends_with_the_connection() -> None:
    response, body = read([b"HTTP/1.0 200 OK\r\n\r\nab", b"c"])
    assert not response.complete

    assert response.eof()
    assert (response.complete, body, response.reusable) == (True, b"abc", False)


def test_an_interim_answer_is_followed_by_the_real_one() -> None:
    response, body = read([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"])

    assert (response.status, body, response.complete) == (200, b"x", True)


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
    ("wire", "begun"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\nContent", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", True),
    ],
)
def test_an_answer_that_ends_with_its_connection_too_early_is_not_whole(wire: bytes, begun: bool) -> None:
    response, _ = read([wire])
    assert not response.eof()
    assert response.begun is begun


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
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nx",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40,
        *(
            FRAMED + broken
            for broken in (b"x\r\n", b"3\nabc", b"3\r\nabcd\r\n", b"3\r\nabc\n", b"0x3\r\nabc", b" 3\r\nabc")
        ),
        FRAMED + b"1" * 40,
    ],
)
def test_what_is_no_response_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        read([wire])


def test_repeated_headers_are_joined() -> None:
    response, _ = read([b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\nContent-Length: 0\r\n\r\n"])

    assert response.head.headers["a"] == "1, 2"


@pytest.mark.parametrize("size", [1_000, 60_000, 66_000, 130_000, 1_000_000])
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", b""), (FRAMED + b"1\r\nx\r\n0\r\nX: ", b"")],
    ids=["head", "trailers"],
)
@pytest.mark.parametrize("step", [10**9, 5_792, 65_536])
def test_a_head_is_judged_alike_however_it_is_cut(size: int, before: bytes, after: bytes, step: int) -> None:
    wire = before + b"a" * size + b"\r\n\r\n" + after
    response = AnswerReader()

    def feed() -> None:
        for start in range(0, len(wire), step):
            response.feed(wire[start : start + step])

    if size > MAX_HEAD_BYTES:
        with pytest.raises(ProtocolError):
            feed()
    else:
        feed()
        assert response.complete


@pytest.mark.parametrize("part", [b"0", b"1;x=" + b"y" * 100, b"HTTP/1.1 200 OK\r\nX: y", b"a"])
def test_the_framing_of_a_body_is_limited(part: bytes) -> None:
    response = AnswerReader()
    response.feed(FRAMED)
    with pytest.raises(ProtocolError):
        list(map(response.feed, [part] * 200_000))


def test_answers_follow_each_other_on_a_connection() -> None:
    response, first = read([CHUNKED])
    assert response.reusable
    response.next()
    assert (response.status, response.complete) == (0, False)
    assert response.feed(b"HTTP/1.1 503 \r\nContent-Length: 2\r\n\r\nno") == b"no"
    assert (response.status, response.complete, response.head.headers) == (503, True, {"content-length": "2"})
    assert first == CHUNKED_BODY


def test_an_answer_that_nobody_asked_for_is_no_part_of_the_one_before() -> None:
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    for second in (first.replace(b"ok", b"no"), CHUNKED, b"rubbish"):
        response = AnswerReader()
        assert response.feed(first + second) == b"ok"
        assert (response.complete, response.reusable) == (True, False)
        assert response.feed(second) == b""


@given(st.lists(st.tuples(st.sampled_from([b"3\r\nabc\r\n", b"2;x\r\nde\r\n"]), st.integers(0, 12)), max_size=12))
def test_it_is_known_where_a_chunk_begins(chunks: list[tuple[bytes, int]]) -> None:
    response = AnswerReader()
    response.feed(FRAMED)
    for chunk, place in chunks:
        for part in (chunk[:place], chunk[place:]):
            if part:
                response.feed(part)
                assert not response.whole_chunk or part.endswith(b"\r\n")
        # Where a chunk may be passed by, it begins; where it may not, only time is lost.
        assert response.whole_chunk or place >= len(chunk) - 1
    assert response.feed(b"1\r\nz\r\n") == b"z"
    assert response.whole_chunk


def test_no_chunk_begins_after_the_last_one() -> None:
    response = AnswerReader()
    response.feed(FRAMED)
    for number in range(len(b"0\r\nX: y\r\n")):
        response.feed(b"0\r\nX: y\r\n"[number : number + 1])
        assert not response.whole_chunk
