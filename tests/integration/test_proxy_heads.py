"""One limit on the heads of requests and on trailers, and one verdict, however the network cuts them."""

import asyncio
import json
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from support.proxy import MODEL, RunningProxy, running_proxy

from pd_contracts.http_answers import MAX_HEAD_BYTES
from pd_contracts.names import Role

BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
Cut = Callable[[int], list[int]]
CUTS: dict[str, Cut] = {
    "whole": lambda _: [],
    "segments": lambda size: list(range(5_792, size, 5_792)),
    "at the limit": lambda _: [MAX_HEAD_BYTES - 1, MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1],
    "in the last line": lambda size: [size - 3, size - 1],
}
SIZES = {8_000: True, 17_000: True, MAX_HEAD_BYTES: True, MAX_HEAD_BYTES + 1: False, 70_000: False, 200_000: False}
CUT = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)


async def statuses(proxy: RunningProxy, *parts: bytes, until: int) -> list[int]:
    """Of the answers to what is written in these parts, with a pause after each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    received = b""
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.002)
    async with asyncio.timeout(30):
        while len(found := re.findall(rb"HTTP/1\.1 (\d{3}) ", received)) < until:
            data = await reader.read(65_536)
            if not data:
                break
            received += data
    writer.close()
    return [int(status) for status in found]


def head(first: bytes, size: int, *lines: bytes) -> bytes:
    """A head of so many bytes."""
    start = b"\r\n".join((first, b"Host: x", *lines, b"Cookie: sso="))
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


def parts_of(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, *(place for place in places if 0 < place < len(data)), len(data)})
    return [data[start:end] for start, end in pairwise(edges)]


@CUT
@pytest.mark.parametrize("kind", ["tokens", "models", "second"])
async def test_a_head_above_the_limit_is_refused_however_it_is_cut(proxy: RunningProxy, cut: Cut, kind: str) -> None:
    await proxy.engine(Role.COMBINED)
    for size, fits in SIZES.items():
        if kind == "tokens":
            data = head(b"POST /v1/chat/completions HTTP/1.1", size, b"Content-Length: %d" % len(BODY)) + BODY
        else:
            data = head(b"GET /v1/models HTTP/1.1", size)
        expected, parts = [200 if fits else 431], parts_of(data, cut(size))
        if kind == "second":  # Hypercorn has the connection already
            expected, parts = [200, *expected], [HEALTH, *parts]
        assert await statuses(proxy, *parts, until=len(expected)) == expected, size


@CUT
async def test_trailers_above_the_limit_are_refused_however_they_are_cut(proxy: RunningProxy, cut: Cut) -> None:
    engine = await proxy.engine(Role.COMBINED)
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    start += b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    for size, fits in SIZES.items():
        name = b"X-Checksum: "
        trailers = name + b"a" * (size - len(name) - 2) + b"\r\n\r\n"
        parts = parts_of(start + trailers, [len(start) + place for place in cut(size)])
        assert await statuses(proxy, *parts, until=1) == [200 if fits else 431], size
    assert len(engine.calls) == sum(SIZES.values())


@pytest.mark.parametrize("beginning", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00\x01\x02", b"\n\n\n\n"])
async def test_what_is_no_http_gets_an_answer_at_once(proxy: RunningProxy, beginning: bytes) -> None:
    assert await statuses(proxy, beginning, until=1) == [400]


ORIGIN = "https://chat.example"
CHUNKED = b"Host: x\r\nOrigin: " + ORIGIN.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /health HTTP/1.1 more\r\nHost: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nbad header: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /v1/completions HTTP/1.1\r\n" + CHUNKED + b"xyz\r\n", 400),
        (b"POST /v1/messages HTTP/1.1\r\n" + CHUNKED + b"5\r\nhelloxx\r\n", 400),
        (b"POST /tokenize HTTP/1.1\r\n" + CHUNKED + b"fffffffffffffffffffffffff\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\n" + CHUNKED + b"ffffffffffffffff\r\n", 413),
        (b"POST /v1/messages HTTP/1.1\r\n" + CHUNKED + b"2000001\r\n{", 413),
        (b"POST /tokenize HTTP/1.1\r\n" + CHUNKED + b"1\r\n{\r\n2000000\r\n", 413),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (HEALTH.replace(b"/health", b"/nothing").replace(b"x", b"x\r\nOrigin: " + ORIGIN.encode(), 1), 404),
    ],
)
async def test_what_is_no_http_is_refused_as_everything_else_is(request_: bytes, status: int) -> None:
    """With the reason as JSON, for pages of the allowed origin, counted and logged."""
    async with running_proxy(cors_origins=(ORIGIN,)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        writer.write(request_)
        first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        head = first.decode().lower()
        found = re.search(r"content-length: (\d+)", head)
        assert found is not None
        body = json.loads(await reader.readexactly(int(found[1])))
        assert head.startswith(f"http/1.1 {status} ")
        assert "content-type: application/json" in head
        assert f"access-control-allow-origin: {ORIGIN}" in head
        assert body["error"]["message"]
        assert "b'" not in body["error"]["message"]
        assert body.get("type") == ("error" if b"/v1/messages" in request_ else None)
        if status != 404:
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        page = (await proxy.get("/metrics")).body.decode()
        assert f'pd_proxy_refused_requests_total{{status="{status}"}} 1.0' in page


async def test_the_reason_of_a_refusal_is_not_sent_to_who_asked_for_a_head_alone() -> None:
    async with running_proxy() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        writer.write(b"HEAD /health HTTP/1.1\r\n" + CHUNKED + b"xyz\r\n")
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")


async def test_lines_may_end_with_a_line_feed_alone(proxy: RunningProxy) -> None:
    assert await statuses(proxy, HEALTH.replace(b"\r\n", b"\n"), until=1) == [200]
