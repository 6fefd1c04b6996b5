"""Serving: the front serves requests for tokens, Hypercorn and the application everything else."""

import asyncio
import logging

from hypercorn.config import Config

from pd_proxy.api.app import running, whole_app
from pd_proxy.api.front import serve_front
from pd_proxy.processes.parent import parent
from pd_proxy.processes.shared_counters import SharedCounters
from pd_proxy.processes.spawn import listeners
from pd_proxy.processes.worker_pool import WorkerPool
from pd_proxy.processes.worker_process import WorkerProcess
from pd_proxy.settings import Settings
from pd_proxy.supervisor import alone

# When the time to drain is over, streams get an error event; this is the time to send it.
LAST_WORDS_S = 2.0
BACKLOG = 4096


def configure(settings: Settings) -> Config:
    """Hypercorn's settings.

    There is no access log, because the proxy writes one structured line per request. Connections live as long as they are used:
    a load generator uses them all the time, and closing them after 1000 requests would only cost new ones.
    """
    config = Config()
    config.bind = f"{settings.bind_host}:{settings.http_proxy_port}"
    config.backlog = BACKLOG
    config.accesslog = None
    config.errorlog = logging.getLogger("pd_proxy.server")
    config.keep_alive_timeout = settings.keep_alive_s
    config.keep_alive_max_requests = 10_000_000
    config.graceful_timeout = settings.drain_timeout_s + LAST_WORDS_S
    config.include_server_header = False
    return config


async def serve(settings: Settings, shutdown: asyncio.Event) -> None:
    """Serve until `shutdown` is set, then let running requests finish.

    Raises:
        OSError: if a port cannot be opened.
    """
    if settings.proxy_workers > 1:
        await _serve_with_workers(settings, shutdown)
        return
    context = alone(settings)

    async def trigger() -> None:
        await shutdown.wait()
        context.stop_soon()

    async with running(context):
        await serve_front(whole_app(context), configure(settings), trigger)


async def _serve_with_workers(settings: Settings, shutdown: asyncio.Event) -> None:
    """As `serve`, with workers: this process is their parent."""
    shared = SharedCounters.create(settings.proxy_workers + 1)
    try:
        sockets = listeners(settings.bind_host, settings.http_proxy_port, settings.proxy_workers)
        workers = [WorkerProcess(number, listener) for number, listener in enumerate(sockets, start=1)]
        context = parent(settings, shared, workers)
        pool = WorkerPool(whole_app(context), context)
        async with running(context), pool.working(shutdown):
            await shutdown.wait()
            context.stop_soon()
    finally:
        shared.close()
