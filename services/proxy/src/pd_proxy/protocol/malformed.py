"""What is wrong with a request that is not valid HTTP, in words for its client: h11 says it in Python's, and quotes headers, which may hold keys. Pure."""

from typing import Final

UNKNOWN: Final = "the request is not valid HTTP"
# By how h11's message begins.
_WORDS: Final = {
    "illegal request line": "the first line is not that of a request, such as POST /v1/completions HTTP/1.1",
    "no request line received": "the request has no first line, such as POST /v1/completions HTTP/1.1",
    "illegal header line": "a header is not a name without spaces, a colon and a value",
    "continuation line at start of headers": "the first header begins with a space",
    "Illegal header name": "the name of a header has a character that is not allowed",
    "Illegal header value": "the value of a header has a character that is not allowed",
    "Illegal method characters": "the method has a character that is not allowed",
    "Illegal target characters": "the path has a character that is not allowed: encode spaces and the like as in %20",
    "Missing mandatory Host": "there is no Host header",
    "Found multiple Host": "there are several Host headers",
    "conflicting Content-Length": "there are several Content-Length headers, which differ",
    "bad Content-Length": "Content-Length is not a number of bytes",
    "multiple Transfer-Encoding": "there are several Transfer-Encoding headers",
    "Only Transfer-Encoding": "Transfer-Encoding is not chunked, the only one that is read",
    "illegal chunk header": "a chunk of the body does not begin with its size",
    "malformed chunk footer": "a chunk of the body is longer than its size",
    "peer closed connection": "the connection was closed before the end of the body",
    "peer unexpectedly closed": "the connection was closed before the end of the request",
}


def in_words(message: str) -> str:
    """The sentence for what h11 says, or for nothing; our own messages stay."""
    for begin, words in _WORDS.items():
        if message.startswith(begin):
            return f"{UNKNOWN}: {words}"
    return UNKNOWN if not message or "b'" in message or 'b"' in message else message
