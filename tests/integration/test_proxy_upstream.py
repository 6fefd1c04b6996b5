"""Failures of short requests to engines, and their messages."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pd_contracts.free_ports import free_port
from pd_contracts.names import Role
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import BrokenReplyError, ConnectTimeoutError, DisconnectedError, UnreachableError, UpstreamError
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.http import MAX_DOCUMENT_BYTES, Upstream

NOTHING = b""
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"
LARGE = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_DOCUMENT_BYTES + 1)
CLOSED = "prefill-0 closed the connection before its answer was complete"
IDNA_ERROR = "UnicodeError" if sys.version_info < (3, 13) else "UnicodeEncodeError"


@pytest.fixture(name="upstream")
async def _upstream() -> AsyncIterator[Upstream]:
    async with Upstream(1.0, MAX_DOCUMENT_BYTES, Shortage(lambda _: None)) as upstream:
        yield upstream


def engine(address: str) -> Instance:
    return Instance(
        name="prefill-0",
        role=Role.PREFILL,
        http_address=address,
        zmq_address="127.0.0.1:1",
        connector=None,
        incarnation=1,
    )


async def failures(upstream: Upstream, address: str) -> list[tuple[type[UpstreamError], str]]:
    """What a POST and a GET to an engine raise."""
    found = []
    asked = engine(address)
    for answer in (upstream.call(asked, "/tokenize", b"{}", 0.5), upstream.get(asked, "/health", 0.5)):
        with pytest.raises(UpstreamError) as failure:
            await answer
        found.append((failure.type, failure.value.message))
    return found


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[str]:
    """The address of an engine that writes this and closes, or (None) says nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def test_a_silent_engine_is_reported_as_not_answering(upstream: Upstream) -> None:
    async with answering(None) as address:
        assert await failures(upstream, address) == [
            (ConnectTimeoutError, "prefill-0 does not answer"),
            (ConnectTimeoutError, "/health does not answer"),
        ]


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (NOTHING, "(ServerDisconnectedError); an engine that speaks HTTPS needs ENGINE_TLS"),
        (CUT, "(ClientPayloadError)"),
    ],
)
async def test_an_answer_that_ends_too_early_is_an_error(upstream: Upstream, answer: bytes, broken: str) -> None:
    async with answering(answer) as address:
        assert await failures(upstream, address) == [
            (DisconnectedError, CLOSED),
            (DisconnectedError, f"/health: the connection broke {broken}"),
        ]


async def test_where_nobody_listens_connections_are_refused(upstream: Upstream) -> None:
    assert await failures(upstream, f"127.0.0.1:{free_port()}") == [
        (UnreachableError, "prefill-0 refuses connections"),
        (UnreachableError, "/health refuses the connection"),
    ]


async def test_an_invalid_address_is_a_broken_connection(upstream: Upstream) -> None:
    assert await failures(upstream, "a..b:80") == [
        (DisconnectedError, CLOSED),
        (DisconnectedError, f"/health: the connection broke ({IDNA_ERROR})"),
    ]


async def test_a_document_is_read_up_to_a_size_only(upstream: Upstream) -> None:
    async with answering(LARGE) as address:
        with pytest.raises(BrokenReplyError, match="answers with more than"):
            await upstream.get(engine(address), "/health", 5.0)
