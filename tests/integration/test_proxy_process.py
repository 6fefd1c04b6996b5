"""`pd-proxy` as a process: options, uvloop, signals."""

import asyncio
import json
import resource
import signal
import socket
import sys

import pytest
from aiohttp import web
from support.aio import until
from support.processes import log_lines, process, start
from support.proxy import MODEL, Call, FakeEngine, RawClient, chunk, settings, start_stream
from support.workers import MANY, WORKERS, spread, workers
from support.workers import listening as listening_workers

from pd_contracts import sse
from pd_contracts.names import Role
from pd_proxy.context import LAST_CALL_S
from pd_proxy.processes.server import configure

STREAM = {"model": MODEL, "prompt": "one two three", "max_tokens": 1000000, "stream": True}


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_sigterm_lets_running_streams_end_and_takes_no_more() -> None:
    async with process(drain_timeout_s=60) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        running = asyncio.create_task(proxy.post(STREAM | {"max_tokens": 3}))
        await until(lambda: engine.calls)
        child.send_signal(signal.SIGTERM)
        await until(lambda: not listens(proxy.settings.http_proxy_port))
        engine.gate.set()
        reply = await running
        assert reply.events[-1] == "[DONE]"
        assert await asyncio.wait_for(child.wait(), 30) == 0
        lines = await log_lines(child)
    requests = [line for line in lines if line["message"] == "request"]
    assert [(line["status"], line["stream"], line["decode"]) for line in requests] == [(200, True, "combined-0")]


async def answer_to(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    """The status, the other lines of the head, and the body of an answer of which the length is known."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode().lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    first, _, rest = head.partition("\r\n")
    return first.split()[1], rest, await reader.readexactly(length)


@pytest.mark.parametrize("count", [1, WORKERS])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models"])
async def test_what_comes_over_a_kept_connection_just_after_sigterm_is_served(path: str, count: int) -> None:
    body = json.dumps({"model": MODEL, "prompt": "one", "max_tokens": 2}).encode()
    method = f"GET {path}" if path == "/v1/models" else f"POST {path}"
    wanted = f"{method} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with process(drain_timeout_s=60, workers=count) as (proxy, child):
        await proxy.engine(Role.COMBINED)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        writer.write(wanted)
        status, rest, _ = await answer_to(reader)
        assert (status, "connection: close" in rest) == ("200", False)
        child.send_signal(signal.SIGTERM)
        await until(lambda: not listens(proxy.settings.http_proxy_port))
        writer.write(wanted)
        status, rest, _ = await answer_to(reader)
        assert (status, "connection: close" in rest) == ("200", True)
        assert await reader.read() == b""
        writer.close()
        assert await asyncio.wait_for(child.wait(), 30) == 0


async def test_a_request_behind_a_stream_that_sigterm_let_end_gets_an_answer() -> None:
    async def half(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk(call, "t0 "))
        await engine.gate.wait()
        await response.write(sse.encode_event(sse.DONE))
        return response

    async with process(drain_timeout_s=60) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED, answer=half)
        engine.gate.clear()
        client = await RawClient.send(proxy, STREAM)
        await client.read_until(b"t0 ")
        child.send_signal(signal.SIGTERM)
        await until(lambda: not listens(proxy.settings.http_proxy_port))
        await asyncio.sleep(2 * LAST_CALL_S)
        engine.gate.set()
        await client.read_until(b"[DONE]\n\n\r\n0\r\n\r\n")
        await client.ask({"model": MODEL, "prompt": "one"})
        await client.read_until(b"HTTP/1.1 503 ")
        await client.read_until(b"Connection: close")
        assert await asyncio.wait_for(child.wait(), 30) == 0


async def test_streams_that_outlive_the_time_to_drain_get_an_error_event() -> None:
    async with process(drain_timeout_s=0.3) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED)
        client = await RawClient.send(proxy, STREAM)
        await client.read_until(b"t5 ")
        engine.gate.clear()
        child.send_signal(signal.SIGTERM)
        await client.read_until(b'"shutting_down"')
        assert await asyncio.wait_for(child.wait(), 30) == 0


async def test_kv_is_not_left_behind_by_a_shutdown() -> None:
    async with process(drain_timeout_s=60) as (proxy, child):
        prefill, decode = await proxy.pair()
        prefill.gate.clear()
        client = await RawClient.send(proxy, STREAM)
        await until(lambda: prefill.calls)
        await client.leave()
        child.send_signal(signal.SIGTERM)
        await until(lambda: not listens(proxy.settings.http_proxy_port))
        await asyncio.sleep(0.3)
        assert not prefill.calls[0].aborted
        prefill.gate.set()
        await until(lambda: decode.calls and decode.calls[0].finished)
        assert decode.calls[0].body["max_tokens"] == 1
        assert await asyncio.wait_for(child.wait(), 30) == 0


async def test_sigterm_lets_the_streams_of_all_workers_end() -> None:
    async with process(drain_timeout_s=60, workers=WORKERS) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        await until(lambda: len(listening_workers(proxy, child.pid)) == WORKERS, 30)
        streams = await spread(proxy, STREAM | {"max_tokens": 3}, child.pid)
        await until(lambda: len(engine.calls) == MANY)
        started = workers(child.pid)
        child.send_signal(signal.SIGTERM)
        await until(lambda: not listens(proxy.settings.http_proxy_port))
        engine.gate.set()
        for stream in streams:
            await stream.read_until(b"[DONE]")
        assert await asyncio.wait_for(child.wait(), 30) == 0
        assert not any(worker.is_running() for worker in started)


async def test_workers_end_with_their_parent() -> None:
    async with process(drain_timeout_s=60, workers=WORKERS) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED)
        await until(lambda: len(listening_workers(proxy, child.pid)) == WORKERS, 30)
        engine.gate.clear()
        streams = await spread(proxy, STREAM, child.pid)
        await until(lambda: len(engine.calls) == MANY)
        started = workers(child.pid)
        child.kill()
        for stream in streams:
            await stream.read_until(b'"shutting_down"')
        await until(lambda: not any(worker.is_running() for worker in started))
        assert not listens(proxy.settings.http_proxy_port)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a limit of another process")
async def test_the_process_may_hold_as_many_connections_as_the_system_allows() -> None:
    async with process(drain_timeout_s=1) as (_, child):
        soft, hard = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
        assert soft == hard or soft > 1_000_000


def test_the_server_waits_longer_than_the_streams_may_take() -> None:
    chosen = settings(drain_timeout_s=30.0)
    assert configure(chosen).graceful_timeout > chosen.drain_timeout_s


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--http-proxy-port", "0"], 2, "--http-proxy-port='0'"),
        (["--proxy-workers", "0"], 2, "--proxy-workers='0'"),
        (["--proxy-workers", "2", "--bind-host", "203.0.113.1"], 1, "cannot start"),
        (["--api-keys-file", "/nowhere"], 1, "cannot start: /nowhere: there is no such file or folder\n"),
        (["--api-keys-file", "/"], 1, "cannot start: /: this is a folder\n"),
        (["--kv-connector", "Carrier"], 2, "--kv-connector='Carrier'"),
        (["--log-level", "LOUD"], 2, "LOG_LEVEL"),
        (["--bind-host", "203.0.113.1"], 1, "cannot start"),
    ],
)
async def test_what_cannot_work_is_refused_at_start_with_a_sentence(options: list[str], status: int, says: str) -> None:
    child = await start(*options)
    _, stderr = await asyncio.wait_for(child.communicate(), 20)
    assert child.returncode == status
    assert says in stderr.decode()
    assert "Traceback" not in stderr.decode()
