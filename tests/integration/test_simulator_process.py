"""The simulator as a process: how it announces itself, how it ends, what it says if it cannot start."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import zmq
import zmq.asyncio
from support.simulator import fast_profile, running, settings_for, spawned

from pd_contracts.free_ports import free_port
from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, PingType, decode_ping
from pd_simulator.engine.pinger import Pinger
from pd_simulator.faults import Faults

COMMAND = str(Path(sys.executable).with_name("pd-simulator"))


@contextlib.contextmanager
def ear(port: int = 0) -> Iterator[tuple[zmq.asyncio.Socket, int]]:
    """A socket that hears identities, and its port; a restarted engine's replaces the old one."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as receiver:
        receiver.setsockopt(zmq.ROUTER_HANDOVER, 1)
        receiver.setsockopt(zmq.LINGER, 0)
        if port:
            receiver.bind(f"tcp://127.0.0.1:{port}")
        yield receiver, port or receiver.bind_to_random_port("tcp://127.0.0.1")


async def hear(receiver: zmq.asyncio.Socket) -> tuple[str, Ping]:
    """Identity and content of the next ping."""
    identity, data = await asyncio.wait_for(receiver.recv_multipart(), timeout=10)
    return identity.decode(), decode_ping(data)


@pytest.mark.parametrize(
    ("role", "kind", "connector"),
    [
        (Role.PREFILL, PingType.PREFILL, Connector.P2P_NCCL),
        (Role.DECODE, PingType.DECODE, Connector.NIXL),
        (Role.COMBINED, PingType.COMBINED, None),
    ],
)
async def test_an_engine_announces_itself(role: Role, kind: PingType, connector: Connector | None) -> None:
    with ear() as (receiver, port):
        settings = settings_for(role, proxy_port=port, kv_connector=connector or Connector.P2P_NCCL, model="m")
        async with running(settings, fast_profile()) as simulator:
            identity, ping = await hear(receiver)

    assert ping.http_address == f"127.0.0.1:{settings.listen_http_port}"
    assert identity == ping.zmq_address == simulator.kv_address
    assert (ping.type, ping.connector, ping.model, ping.engine) == (kind, connector, "m", "pd-simulator")
    assert ping.version
    assert ping.boot_id


async def test_pings_go_on_and_survive_a_proxy_that_comes_back() -> None:
    ping = Ping(PingType.PREFILL, "127.0.0.1:1", "127.0.0.1:2")
    port = free_port()
    task = asyncio.create_task(Pinger(ping, "127.0.0.1", port, Faults(), interval_s=0.02).run())
    for _ in range(2):
        with ear(port) as (receiver, _):
            assert [await hear(receiver) for _ in range(3)] == [("127.0.0.1:2", ping)] * 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_engine_has_a_new_boot_id_each_time() -> None:
    boots = set()
    with ear() as (receiver, port):
        settings = settings_for(Role.DECODE, proxy_port=port)
        for _ in range(2):
            async with running(settings, fast_profile()):
                boots.add((await hear(receiver))[1].boot_id)

    assert len(boots) == 2


async def test_a_term_signal_ends_it_cleanly_even_with_a_stream_open() -> None:
    async with spawned(settings_for()) as simulator:
        task = asyncio.create_task(simulator.complete([5, 6, 7], max_tokens=500, stream=True))
        await simulator.until("vllm:num_requests_running", lambda count: count == 1)
        assert simulator.process is not None

        simulator.process.terminate()

        assert await asyncio.wait_for(simulator.process.wait(), timeout=5) == 0
        with contextlib.suppress(aiohttp.ClientError, AssertionError):
            await task  # the stream was cut


async def run(**variables: str) -> tuple[int | None, str]:
    """Start with these variables and wait for the end; status and standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, env={**os.environ, **variables}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), timeout=20)
    return process.returncode, errors.decode()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PD_ROLE": "both"}, "PD_ROLE='both'"),
        ({"SIM_PROFILE": "h100"}, "no profile 'h100'"),
        ({"MAX_MODEL_LEN": "long"}, "MAX_MODEL_LEN='long'"),
    ],
)
async def test_settings_that_cannot_be_used_are_refused_in_a_sentence(variables: dict[str, str], words: str) -> None:
    status, errors = await run(**variables)

    assert status == 2
    assert words in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["HTTP_PORT", "KV_PORT"])
async def test_a_taken_port_is_refused_in_a_sentence(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"HTTP_PORT": str(free_port()), "KV_PORT": str(free_port()), name: str(taken.getsockname()[1])}
        status, errors = await run(PD_ROLE="decode", BIND_HOST="127.0.0.1", PROXY_PORT=str(free_port()), **ports)

    assert status == 1
    assert "address already in use" in errors.lower()
    assert "Traceback" not in errors
