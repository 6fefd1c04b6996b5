"""How requests are written."""

from pd_loadgen.client.address import Target
from pd_loadgen.client.http1 import request_bytes


def test_a_request_is_complete_and_uncompressed() -> None:
    wire = request_bytes(Target("::1", 80, "/b"), "/v1/completions", b'{"a":1}', {"X-PD-Timing": "1"})
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")

    assert lines[0] == b"POST /b/v1/completions HTTP/1.1"
    assert {b"Host: [::1]:80", b"Content-Length: 7", b"Accept-Encoding: identity", b"X-PD-Timing: 1"} <= set(lines)
    assert body == b'{"a":1}'
