"""What a client is told of a request that is no HTTP."""

import h11
import pytest

from pd_proxy.protocol.malformed import UNKNOWN, in_words

FIRST = b"POST / HTTP/1.1\r\n"
CHUNKED = FIRST + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def said(data: bytes, *, ended: bool = False) -> str:
    """What h11 says of it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    if ended:
        connection.receive_data(b"")
    try:
        while connection.next_event() is not h11.NEED_DATA:
            pass
    except h11.RemoteProtocolError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"NONSENSE\r\n\r\n", "the first line is not that of a request, such as POST /v1/completions HTTP/1.1"),
        (b"\x16\x03\x01", "the first line is not that of a request, such as POST /v1/completions HTTP/1.1"),
        (FIRST + b"Host: x\r\nApi Key: secret\r\n\r\n", "a header is not a name without spaces, a colon and a value"),
        (FIRST + b" Host: x\r\n\r\n", "the first header begins with a space"),
        (FIRST + b"Accept: */*\r\n\r\n", "there is no Host header"),
        (FIRST + b"Host: x\r\nHost: y\r\n\r\n", "there are several Host headers"),
        (FIRST + b"Host: x\r\nContent-Length: many\r\n\r\n", "Content-Length is not a number of bytes"),
        (
            FIRST + b"Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "there are several Content-Length headers, which differ",
        ),
        (
            FIRST + b"Host: x\r\nTransfer-Encoding: gzip\r\n\r\n",
            "Transfer-Encoding is not chunked, the only one that is read",
        ),
        (CHUNKED + b"xyz\r\n", "a chunk of the body does not begin with its size"),
        (CHUNKED + b"5\r\nhelloxx\r\n", "a chunk of the body is longer than its size"),
    ],
)
def test_what_h11_refuses_is_said_in_words(data: bytes, words: str) -> None:
    assert in_words(said(data)) == f"{UNKNOWN}: {words}"


@pytest.mark.parametrize("start", [CHUNKED + b"5\r\nhe", FIRST + b"Host: x\r\nContent-Length: 9\r\n\r\nhe"])
def test_a_body_that_was_cut_is_said_in_words(start: bytes) -> None:
    assert in_words(said(start, ended=True)).endswith("the connection was closed before the end of the body")


def test_no_quotation_of_what_was_sent_is_passed_on_and_our_own_reasons_stay() -> None:
    assert in_words("something new: bytearray(b'Authorization Bearer secret')") == UNKNOWN
    assert in_words("") == UNKNOWN
    assert in_words("the head is too large") == "the head is too large"
