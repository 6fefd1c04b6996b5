"""The probes and the draining of a running engine: a simulated one and the proxy, each a process of its own."""

import asyncio
import contextlib
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.proxy import listening
from support.simulator import Simulator, settings_for, spawned

from pd_contracts.free_ports import free_port
from pd_contracts.names import Role
from pd_engine.checks import Checks
from pd_engine.settings import CheckSettings
from pd_simulator.settings import Settings

KEY = "operator"


@dataclass
class Stack:
    """One combined engine behind a proxy."""

    engine: Simulator
    proxy: Process
    proxy_url: str
    settings: CheckSettings

    def checks(self, folder: Path) -> Checks:
        return Checks(self.settings, folder, os.getpid())

    async def until_admitted(self, checks: Checks) -> None:
        await eventually(checks.admitted, lambda reason: not reason)


async def eventually(check: Callable[[], str], wanted: Callable[[str], object]) -> str:
    """Repeat a check, which blocks, until it says what is wanted."""
    async with asyncio.timeout(20):
        while True:
            reason = await asyncio.to_thread(check)
            if wanted(reason):
                return reason
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def proxy_process(http_port: int, discovery_port: int) -> AsyncIterator[Process]:
    variables = {
        "HTTP_PROXY_PORT": str(http_port),
        "PROXY_PORT": str(discovery_port),
        "BIND_HOST": "127.0.0.1",
        "HEALTH_INTERVAL_S": "0.2",
        "ADMIN_KEY": KEY,
        "LOG_LEVEL": "ERROR",
        "PATH": os.environ["PATH"],
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "pd_proxy", env=variables)
    ended = asyncio.create_task(_ended(process))
    try:
        await listening(http_port, ended)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await ended


async def _ended(process: Process) -> None:
    await process.wait()


def check_settings(engine: Settings, http_proxy_port: int, **changes: object) -> CheckSettings:
    return CheckSettings(
        pd_role=engine.pd_role,
        http_port=engine.listen_http_port,
        vllm_host_ip="127.0.0.1",
        proxy_port=engine.proxy_port,
        http_proxy_port=http_proxy_port,
        admin_key=KEY,
        **changes,  # type: ignore[arg-type]  # numbers by name
    )


@pytest.fixture(name="stack")
async def _stack() -> AsyncIterator[Stack]:
    http_port = free_port()
    chosen = settings_for(Role.COMBINED, vllm_host_ip="127.0.0.1")
    async with proxy_process(http_port, chosen.proxy_port) as proxy, spawned(chosen) as engine:
        url = f"http://127.0.0.1:{http_port}"
        async with engine.session.get(url + "/admitted?boot_id=nobody") as response:
            if response.status == 404:
                pytest.skip("this proxy does not say who is admitted")
        yield Stack(engine, proxy, url, check_settings(chosen, http_port, engine_stall_s=1.0, drain_wait_s=10.0))


@pytest.fixture(name="engine")
async def _engine() -> AsyncIterator[Simulator]:
    async with spawned(settings_for(Role.COMBINED, vllm_host_ip="127.0.0.1")) as engine:
        yield engine


async def run(settings: CheckSettings, folder: Path, *arguments: str) -> tuple[int | None, str]:
    """`python -m pd_engine …` as the kubelet starts it."""
    variables = {
        "PD_ROLE": settings.pd_role.value,
        "HTTP_PORT": str(settings.http_port),
        "VLLM_HOST_IP": settings.vllm_host_ip,
        "PROXY_PORT": str(settings.proxy_port),
        "HTTP_PROXY_PORT": str(settings.http_proxy_port),
        "ADMIN_KEY": settings.admin_key,
        "DRAIN_WAIT_S": str(settings.drain_wait_s),
        "ENGINE_STALL_S": str(settings.engine_stall_s),
        "TMPDIR": str(folder),
        "PATH": os.environ["PATH"],
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pd_engine", *arguments, env=variables, stderr=PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, said.decode()


# --- without a proxy ---------------------------------------------------------------------------------------------------------


async def test_an_engine_that_answers_passes_every_probe_that_asks_no_proxy(engine: Simulator, tmp_path: Path) -> None:
    settings = check_settings(engine.settings, free_port())

    assert await run(settings, tmp_path, "probe") == (0, "")
    assert await run(settings, tmp_path, "probe", "--alive") == (0, "")


async def test_an_engine_that_answers_no_more_fails(engine: Simulator, tmp_path: Path) -> None:
    await engine.post("/sim/faults", {"refuse": True})
    settings = check_settings(engine.settings, free_port())

    for arguments in (["probe"], ["probe", "--alive"]):
        status, said = await run(settings, tmp_path, *arguments)
        assert status == 1
        assert said


async def test_an_engine_that_computes_nothing_for_its_requests_is_not_alive_though_it_looks_healthy(
    engine: Simulator, tmp_path: Path
) -> None:
    checks = Checks(check_settings(engine.settings, free_port(), engine_stall_s=1.0), tmp_path, os.getpid())
    await engine.post("/sim/faults", {"stall": "after_first_token"})
    request = asyncio.create_task(engine.complete("one two three", max_tokens=50))
    await engine.until("vllm:num_requests_running", lambda running: running > 0)

    assert await asyncio.to_thread(checks.alive) == ""
    reason = await eventually(checks.alive, bool)
    assert "nothing was computed" in reason
    assert await asyncio.to_thread(checks.health) == ""

    await engine.post("/sim/faults", {})
    await request
    assert await asyncio.to_thread(checks.alive) == "", "it works again"


async def test_an_engine_that_works_is_alive_for_longer_than_the_limit(engine: Simulator, tmp_path: Path) -> None:
    checks = Checks(check_settings(engine.settings, free_port(), engine_stall_s=0.5), tmp_path, os.getpid())
    request = asyncio.create_task(engine.complete("one two three", max_tokens=8000))
    await engine.until("vllm:num_requests_running", lambda running: running > 0)

    started = time.monotonic()
    while time.monotonic() - started < 1.5 and not request.done():
        assert await asyncio.to_thread(checks.alive) == ""
        await asyncio.sleep(0.1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def test_draining_never_fails_and_never_waits_for_a_proxy_that_is_not_there(
    engine: Simulator, tmp_path: Path
) -> None:
    settings = check_settings(engine.settings, free_port())

    status, said = await run(settings, tmp_path, "drain")
    assert (status, said[:50]) == (0, "pd-engine: not drained: the proxy does not answer;")
    without = check_settings(engine.settings, free_port())
    nobody = CheckSettings(http_port=without.http_port)
    assert await run(nobody, tmp_path, "drain") == (0, "pd-engine: not drained: ADMIN_KEY is not set\n")


async def test_while_the_proxy_is_stopped_too_what_runs_still_has_its_time_to_end(
    engine: Simulator, tmp_path: Path
) -> None:
    checks = Checks(check_settings(engine.settings, free_port(), drain_wait_s=60.0), tmp_path, os.getpid())
    request = asyncio.create_task(engine.complete("one two three", max_tokens=150))
    await engine.until("vllm:num_requests_running", lambda running: running > 0)
    draining = asyncio.create_task(asyncio.to_thread(checks.drain))

    assert (await request).status == 200
    assert "the proxy does not answer" in await asyncio.wait_for(draining, 30)


async def test_what_only_seems_to_run_keeps_nobody_waiting(engine: Simulator, tmp_path: Path) -> None:
    checks = Checks(check_settings(engine.settings, free_port(), drain_wait_s=60.0), tmp_path, os.getpid())
    await engine.post("/sim/faults", {"stall": "after_first_token"})
    request = asyncio.create_task(engine.complete("one two three", max_tokens=50))
    await engine.until("vllm:num_requests_running", lambda running: running > 0)

    await asyncio.wait_for(asyncio.to_thread(checks.drain), 20)
    assert not request.done()
    await engine.post("/sim/faults", {})
    await request


@pytest.mark.parametrize("arguments", [["probe", "--ready"], ["drain", "now"], ["stop"]])
async def test_what_there_is_no_command_for_is_refused(arguments: list[str], tmp_path: Path) -> None:
    status, said = await run(CheckSettings(), tmp_path, *arguments)

    assert status == 2
    assert said.startswith("usage:")


# --- with the proxy ----------------------------------------------------------------------------------------------------------


async def test_an_engine_is_ready_once_the_proxy_has_admitted_it_and_stays_so_while_the_proxy_is_away(
    stack: Stack, tmp_path: Path
) -> None:
    checks = stack.checks(tmp_path)
    await stack.until_admitted(checks)
    assert await run(stack.settings, tmp_path, "probe", "--admitted") == (0, "")

    await stack.engine.post("/sim/faults", {"refuse": True})
    reason = await eventually(checks.admitted, bool)
    assert reason.startswith("joining")
    stack.proxy.kill()
    await stack.proxy.wait()
    assert await asyncio.to_thread(checks.admitted) == reason, "what it said last stands"


async def test_draining_takes_no_new_requests_and_waits_for_those_that_run(stack: Stack, tmp_path: Path) -> None:
    await stack.until_admitted(stack.checks(tmp_path))
    await stack.engine.post("/sim/faults", {"stall": "after_first_token"})
    body = {"model": stack.engine.settings.model, "prompt": "one two three", "max_tokens": 5, "ignore_eos": True}

    async def ask() -> int:
        async with stack.engine.session.post(stack.proxy_url + "/v1/completions", json=body) as response:
            await response.read()
            return response.status

    running = asyncio.create_task(ask())
    await stack.engine.until("vllm:num_requests_running", lambda count: count > 0)
    drain = asyncio.create_task(run(stack.settings, tmp_path, "drain"))
    checks = stack.checks(tmp_path)
    reason = await eventually(checks.admitted, bool)

    assert reason.startswith("draining")
    assert await ask() == 503
    assert not drain.done()
    await stack.engine.post("/sim/faults", {})
    assert await running == 200
    status, said = await drain
    assert status == 0
    assert '"drained":true' in said.replace(" ", "")
