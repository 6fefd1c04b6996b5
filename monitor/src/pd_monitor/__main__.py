"""`pd-monitor`: read the settings, sample and serve until a signal comes."""

import asyncio
import contextlib
import logging
import signal

from aiohttp import web

from pd_contracts import log
from pd_contracts.settings import from_command_line
from pd_monitor.app import Monitor, make_app
from pd_monitor.backends import choose
from pd_monitor.settings import Settings

_log = logging.getLogger("pd_monitor")


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. An error of the sampler ends the process: an exporter that does not sample is of no use."""
    monitor = Monitor(settings, await choose(settings))
    runner = web.AppRunner(make_app(monitor), access_log=None)
    try:
        await runner.setup()
        await _listen(runner, settings)
        backend = monitor.sampler.backend
        _log.info(
            "listening", extra={"port": settings.monitor_port, "backend": backend.name, "simulated": backend.simulated}
        )
        await _until_signal(monitor)
    finally:
        await runner.cleanup()
        await monitor.close()


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    try:
        await web.TCPSite(runner, settings.bind_host, settings.monitor_port).start()
    except OSError as error:
        msg = f"pd-monitor: {error}"
        raise SystemExit(msg) from error


async def _until_signal(monitor: Monitor) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sampling, stopping = asyncio.create_task(monitor.sampler.run()), asyncio.create_task(stop.wait())
    await asyncio.wait({sampling, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (sampling, stopping):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # our own cancellation, two lines up
            await task


def main() -> None:
    """Start with options and environment; status 1 if the port cannot be had, 2 for a bad setting."""
    settings = from_command_line(
        Settings, "pd-monitor", "Power, clocks and energy of every GPU: exporter and recorder."
    )
    log.set_up(settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
