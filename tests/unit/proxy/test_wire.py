"""HTTP/1.1 heads of requests on the hot path: what is read, what is refused; and what is written."""

import pytest

from pd_proxy.protocol.wire import (
    beginnings,
    may_become_head,
    request_head,
    write_chunk,
    write_head,
)

LINES = ["Host: x", "Content-Type: application/json", "Content-Length: 7"]


def head(*lines: str, start: str = "POST /v1/completions HTTP/1.1") -> bytes:
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


def read(data: bytes) -> object:
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


def test_a_request_for_a_response_is_read_but_not_one_about_a_stored_response() -> None:
    data = head(*LINES, start="POST /v1/responses HTTP/1.1")
    found = request_head(data, len(data))
    assert found is not None
    assert found.path == "/v1/responses"
    for path in ("responses/resp_1/cancel", "responses//", "responses?x=1"):
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


def test_bytes_without_an_end_may_still_become_a_head() -> None:
    data = head(*LINES)
    assert all(may_become_head(data[:size]) for size in range(1, len(data) - 1))
    assert may_become_head(b"GET /hea")
    assert not may_become_head(b"\x16\x03\x01"), "the beginning of TLS"
    assert not may_become_head(b"GET / HTTP/1.1\nHost: x\n\n")
    assert not may_become_head(b"GET / HTTP/1.1\nHost: x\n\n", seen=22)


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\rb", "a\0b"])
def test_no_header_can_end_its_line(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        write_head("HTTP/1.1 200 OK", {"X": value})


@pytest.mark.parametrize("size", [4, 15, 16, 171, 255, 256, 4095])
def test_a_whole_chunk_begins_as_its_length_says(size: int) -> None:
    expected = beginnings((b"data", b"id"))
    chunk = write_chunk(b"data" + bytes(size - 4))
    for whole in (chunk, chunk.replace(b"data", b"id: "), chunk.upper().replace(b"DATA", b"data")):
        assert whole.startswith(expected[len(whole)])
    for other in (chunk[:-1], chunk + b"\n", b"0" + chunk, chunk.replace(b"data", b"dat:")):
        assert not other.startswith(expected.get(len(other), ()))
