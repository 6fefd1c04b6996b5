"""Requests on raw sockets that two servers could read differently. The proxy writes every request to an engine anew, so what must hold
is: it reads one request or none, and an engine gets a body only if its length was never in doubt."""

import asyncio
import json
import re

import pytest
from support.proxy import MODEL, FakeEngine, RunningProxy

from pd_contracts.names import Role

BODY = json.dumps({"model": MODEL, "prompt": "honest", "input": "honest", "max_tokens": 1}).encode()
EVIL = json.dumps({"model": MODEL, "prompt": "smuggled", "input": "smuggled", "max_tokens": 1}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
SECOND = HEAD + b"Content-Length: %d\r\n\r\n" % len(EVIL) + EVIL


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


async def exchange(proxy: RunningProxy, data: bytes) -> list[bytes]:
    """Statuses of everything that comes back until the connection ends or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(data)
    received = b""
    try:
        async with asyncio.timeout(1.5):
            while more := await reader.read(65536):
                received += more
    except (TimeoutError, ConnectionResetError):
        pass  # it keeps the connection, or ends it hard; both are answers
    writer.close()
    return re.findall(rb"HTTP/1\.1 (\d{3})", received)


def prompts(engine: FakeEngine) -> list[str]:
    return [call.body["prompt"] for call in engine.calls]


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 7\r\nContent-Length: %d\r\n" % len(BODY),
        b"Content-Length: 7, %d\r\n" % len(BODY),
        b"Content-Length: -1\r\n",
        b"Content-Length: +%d\r\n" % len(BODY),
        b"Content-Length: 0x10\r\n",
        b"Content-Length : %d\r\n" % len(BODY),
        b"Content-Length: %d\x00\r\n" % len(BODY),
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"X: y\nContent-Length: %d\r\n\x0b: z\r\n" % len(BODY),
    ],
)
@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/responses"])
async def test_a_length_that_is_in_doubt_is_refused(proxy: RunningProxy, path: bytes, framing: bytes) -> None:
    engine = await proxy.engine(Role.COMBINED)
    data = HEAD + framing + b"\r\n" + BODY + SECOND
    statuses = await exchange(proxy, data.replace(b"/v1/completions", path))
    assert not engine.calls
    assert len(statuses) <= 1
    assert all(status in (b"400", b"411", b"501") for status in statuses)


@pytest.mark.parametrize("order", [0, 1])
async def test_two_kinds_of_length_at_once_end_the_connection(proxy: RunningProxy, order: int) -> None:
    engine = await proxy.engine(Role.COMBINED)
    lengths = [b"Content-Length: %d\r\n" % len(chunked(BODY) + SECOND), b"Transfer-Encoding: chunked\r\n"]
    head = HEAD + lengths[order] + lengths[1 - order] + b"\r\n"
    statuses = await exchange(proxy, head + chunked(BODY) + SECOND)
    assert statuses == [b"400"]
    assert not engine.calls


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"-5\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"0x%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
        b"%x\r\n" % len(BODY) + BODY + b"XX0\r\n\r\n",
        b"f" * 40 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    ],
)
async def test_chunks_that_are_none_reach_no_engine(proxy: RunningProxy, chunks: bytes) -> None:
    engine = await proxy.engine(Role.COMBINED)
    statuses = await exchange(proxy, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + SECOND)
    assert not engine.calls
    assert len(statuses) <= 1
    assert all(status == b"400" for status in statuses)


async def test_a_folded_header_is_refused_or_one_line(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    folded = b"traceparent: 00-a\r\n Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    statuses = await exchange(proxy, HEAD + folded + BODY)
    assert statuses in ([b"200"], [b"400"])
    for call in engine.calls:
        assert (call.body["prompt"], call.headers.get("Transfer-Encoding")) == ("honest", None)
        assert all("\r" not in value and "\n" not in value for value in call.headers.values())


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/responses"])
async def test_an_honest_pipeline_is_two_requests(proxy: RunningProxy, path: bytes) -> None:
    engine = await proxy.engine(Role.COMBINED)
    first = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY)
    statuses = await exchange(proxy, (first + SECOND).replace(b"/v1/completions", path))
    assert statuses == [b"200", b"200"]
    assert prompts(engine) == ["honest", "smuggled"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"X: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (HEAD + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)) + b"\r\n", b"431"),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"413"),
    ],
)
async def test_what_is_too_large_is_refused_before_it_has_all_come(
    proxy: RunningProxy, head: bytes, status: bytes
) -> None:
    engine = await proxy.engine(Role.COMBINED)
    statuses = await exchange(proxy, head)
    assert statuses == [status]
    assert not engine.calls
    assert (await proxy.get("/health")).status == 200
