"""The example of two proxies behind nginx: its configuration is valid, and a proxy that ends is passed over."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.aio import until
from support.proxy import MODEL, running_proxy

from pd_contracts.free_ports import free_port
from pd_contracts.names import Role

TEMPLATE = Path(__file__).parents[2] / "services/proxy/examples/two-proxies.conf.template"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
SERVER = "server proxy:${HTTP_PROXY_PORT}"
AROUND = """
pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1; daemon off;
events {{}}
http {{ access_log off;
client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{inner}
}}
"""


def written(folder: Path, port: int, proxies: list[int]) -> Path:
    """The example's file with ports of this machine, as the image's start would fill it in."""
    text = TEMPLATE.read_text()
    (line,) = [line for line in text.splitlines() if SERVER in line]
    servers = "\n".join(line.replace(SERVER, f"server 127.0.0.1:{one}") for one in proxies)
    inner = text.replace(line, servers).replace("${HTTP_PROXY_PORT}", str(port))
    path = folder / "nginx.conf"
    path.write_text(AROUND.format(folder=folder, inner=inner))
    return path


@contextlib.contextmanager
def balancer(folder: Path, ports: list[int]) -> Iterator[str]:
    """nginx before proxies at these ports; its URL."""
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    port = free_port()
    path = written(folder, port, ports)
    checked = subprocess.run([NGINX, "-t", "-c", str(path)], capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stderr
    with subprocess.Popen([NGINX, "-c", str(path)]) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """A port that takes no connection and refuses none, as the address of a container that is gone."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(8):  # more than its queue holds
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


async def ask(session: aiohttp.ClientSession, url: str, *, stream: bool) -> str:
    """One completion; its whole body."""
    body = {"model": MODEL, "prompt": "one", "max_tokens": 4, "stream": stream}
    for _ in range(200):
        with contextlib.suppress(aiohttp.ClientConnectorError):  # nginx is about to listen
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                text = await answer.text()
                assert answer.status == 200, text
                return text
    raise TimeoutError


async def test_requests_pass_over_a_proxy_that_has_ended(tmp_path: Path) -> None:
    async with running_proxy() as first, running_proxy() as second:
        engines = [await proxy.engine(Role.COMBINED) for proxy in (first, second)]
        with balancer(tmp_path, [first.settings.http_proxy_port, second.settings.http_proxy_port]) as url:
            async with aiohttp.ClientSession() as session:
                answers = [await ask(session, url, stream=number % 2 == 0) for number in range(8)]
                assert all("[DONE]" in answer for answer in answers[::2])
                assert all(engine.calls for engine in engines)
                first.shutdown.set()
                await first.serving

                assert all([await ask(session, url, stream=True) for _ in range(6)])


async def test_a_proxy_that_has_no_room_for_a_request_is_no_dead_one(tmp_path: Path) -> None:
    # Room for one prompt on its way to the decode engine of each proxy.
    room: dict[str, Any] = {"kv_in_flight_bytes": 131072 * 100, "queue_timeout_s": 0.3}
    body = {"model": MODEL, "prompt": [1] * 80, "max_tokens": 4}
    async with running_proxy(**room) as first, running_proxy(**room) as second:
        prefills = [(await proxy.pair())[0] for proxy in (first, second)]
        with balancer(tmp_path, [first.settings.http_proxy_port, second.settings.http_proxy_port]) as url:
            async with aiohttp.ClientSession() as session:

                async def status() -> int:
                    async with session.post(f"{url}/v1/completions", json=body) as answer:
                        await answer.read()
                        return answer.status

                await ask(session, url, stream=False)
                for prefill in prefills:
                    prefill.gate.clear()
                running = [asyncio.create_task(status()) for _ in prefills]
                await until(
                    lambda: all(any(call.body["prompt"] == body["prompt"] for call in p.calls) for p in prefills)
                )
                assert [await status() for _ in range(4)] == [503] * 4
                for prefill in prefills:
                    prefill.gate.set()
                assert await asyncio.gather(*running) == [200, 200]
                assert await status() == 200


async def test_a_proxy_that_is_told_to_end_under_load_costs_no_request(tmp_path: Path) -> None:
    async with running_proxy(drain_timeout_s=5.0) as first, running_proxy() as second:
        for proxy in (first, second):
            await proxy.engine(Role.COMBINED)
        with balancer(tmp_path, [first.settings.http_proxy_port, second.settings.http_proxy_port]) as url:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                await ask(session, url, stream=False)

                async def client(number: int) -> None:
                    for turn in range(20):
                        await ask(session, url, stream=number % 2 == 0)
                        await asyncio.sleep(0.01 * number)
                        if number == turn == 5:
                            first.shutdown.set()

                await asyncio.gather(*map(client, range(16)))
                assert first.shutdown.is_set()


async def test_requests_pass_over_an_address_that_no_longer_answers(tmp_path: Path) -> None:
    async with running_proxy() as proxy:
        await proxy.engine(Role.COMBINED)
        with silence() as gone, balancer(tmp_path, [gone, proxy.settings.http_proxy_port]) as url:
            async with aiohttp.ClientSession() as session:
                assert all([await ask(session, url, stream=True) for _ in range(6)])
