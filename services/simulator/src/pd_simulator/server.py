"""Puts one engine together and runs it."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from pd_contracts.address import own_address
from pd_contracts.names import SIMULATED_ENGINE, Connector
from pd_contracts.ping import Ping, ping_type
from pd_contracts.proxies import first_host
from pd_simulator import __version__
from pd_simulator.api.generation import Rules
from pd_simulator.api.routes import Api
from pd_simulator.engine.board import SimulatedBoard
from pd_simulator.engine.loop import Engine, Machine
from pd_simulator.engine.pinger import Pinger
from pd_simulator.kv_blocks import BLOCK_TOKENS, blocks_of
from pd_simulator.profile import Profile
from pd_simulator.settings import Settings
from pd_simulator.steps.scheduler import Limits
from pd_simulator.steps.step_time import StepModel
from pd_simulator.tokenizer import Tokenizer
from pd_simulator.transfer import make_transfer
from pd_simulator.transfer.base import Site

_SHUTDOWN_S = 1.0

log = logging.getLogger(__name__)


def announced(settings: Settings) -> Settings:
    """The settings with the address to announce: the one that is set, else that of the interface that leads to the proxy.

    Raises:
        OSError: if it cannot be found.
    """
    address = settings.vllm_host_ip or own_address(*first_host(settings.proxy_host, settings.proxy_port))
    if not address:
        msg = f"PROXY_HOST={settings.proxy_host!r} does not resolve; set it, or set VLLM_HOST_IP to the address to announce"
        raise OSError(msg)
    return msgspec.structs.replace(settings, vllm_host_ip=address)


def ping_of(settings: Settings) -> Ping:
    """What this start of the engine announces; the boot id is new each time."""
    return Ping(
        type=ping_type(settings.pd_role, moves_kv=settings.connector is not None),
        http_address=f"{settings.vllm_host_ip}:{settings.listen_http_port}",
        zmq_address=f"{settings.vllm_host_ip}:{settings.listen_kv_port}",
        connector=settings.connector,
        boot_id=uuid.uuid4().hex,
        model=settings.model,
        engine=SIMULATED_ENGINE,
        version=__version__,
        gpus=settings.engine_gpus,
        gpu_model=settings.engine_gpu_model,
        image=settings.engine_image,
        number=settings.instance,
        deployment=settings.deployment,
    )


def _with_board(ping: Ping, engine: Engine) -> Ping:
    """The ping with the simulated board, unless other GPUs were named."""
    board = engine.machine.board.info
    return msgspec.structs.replace(ping, gpus=ping.gpus or (board.uuid,), gpu_model=ping.gpu_model or board.name)


def make_engine(settings: Settings, profile: Profile, tokenizer: Tokenizer) -> Engine:
    """An engine of the settings' role; it does nothing until it is run."""
    steps = StepModel(profile, settings.connector, role=settings.pd_role)
    site = Site(
        role=settings.pd_role,
        name=settings.name,
        model=settings.model,
        host=settings.vllm_host_ip,
        bind_host=settings.bind_host,
        kv_port=settings.listen_kv_port,
        shared_path=settings.kv_shared_path,
        lease_s=settings.kv_lease_s,
        load_timeout_s=settings.kv_load_timeout_s,
        leak_s=settings.sim_leak_s,
        faults=settings.faults(),
        receive_s=steps.receive_s,
    )
    limits = Limits(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_tokens=max(profile.memory.kv_tokens, BLOCK_TOKENS * blocks_of(settings.max_model_len)),
        chunked=not settings.sends_whole_prompts,
        async_scheduling=profile.async_scheduling,
    )
    board = SimulatedBoard(
        profile, index=settings.sim_gpu, role=settings.pd_role, instance=settings.name, now=time.monotonic()
    )
    machine = Machine(
        profile=profile,
        limits=limits,
        steps=steps,
        board=board,
        transfer=make_transfer(settings.connector, site),
        model=settings.model,
        words=tokenizer.words,
        draws_by_position=settings.sim_draws_by_position,
        draws=_draws(settings),
        number=settings.instance,
    )
    return Engine(machine)


def _draws(settings: Settings) -> str:
    """Equal at engines that draw alike; empty if that cannot be relied on, or if there is no P2pConnector to say so."""
    told = settings.sim_draws_by_position and settings.connector is Connector.P2P
    return f"simulated {__version__}" if told else ""


@contextlib.asynccontextmanager
async def serving(settings: Settings, profile: Profile) -> AsyncIterator[Engine]:
    """Run an engine with everything around it while the context lasts.

    Raises:
        OSError: if a port is taken, or the address to announce or the key of pings cannot be found.
    """
    settings, key = announced(settings), settings.key()
    tokenizer = Tokenizer()
    engine = make_engine(settings, profile, tokenizer)
    faults = engine.machine.transfer.site.faults
    pinger = Pinger(_with_board(ping_of(settings), engine), settings.proxy_host, settings.proxy_port, faults, key=key)
    api = Api(engine, Rules(settings.model, settings.max_model_len, tokenizer))
    # Handlers are cancelled when their client leaves: that is how a request is aborted.
    runner = web.AppRunner(api.application(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
    tasks = [asyncio.create_task(pinger.run()), asyncio.create_task(engine.run())]
    for task in tasks:
        task.add_done_callback(_complain)
    try:
        await engine.machine.transfer.start()
        await runner.setup()
        await web.TCPSite(runner, settings.bind_host, settings.listen_http_port).start()
        log.info(
            "serving",
            extra={"engine": settings.name, "port": settings.listen_http_port, "profile": settings.sim_profile},
        )
        yield engine
    finally:
        await runner.cleanup()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()
        await engine.machine.transfer.close()


def _complain(task: asyncio.Task[None]) -> None:
    """A task that should run forever ended: say why, since nobody awaits it before the end."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a part of the engine died", exc_info=task.exception())
