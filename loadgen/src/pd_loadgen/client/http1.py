"""A request as HTTP/1.1 writes it. Answers are read by `pd_contracts.http_answers`."""

from collections.abc import Mapping

from pd_loadgen.client.address import Target


def request_bytes(target: Target, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A whole POST request with a JSON body, ready for the socket."""
    lines = [
        f"POST {target.base}{path} HTTP/1.1",
        f"Host: {target.authority}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        # a compressing server would hold tokens back until a block is full
        "Accept-Encoding: identity",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
