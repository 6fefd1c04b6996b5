"""`pd-monitor`: read the settings, sample and serve until a signal comes. `pd-monitor clocks` and `pd-monitor split` do one thing."""

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from pd_contracts import log
from pd_contracts.settings import SettingsError, from_command_line, load
from pd_monitor.app import Monitor, make_app
from pd_monitor.backends import choose
from pd_monitor.backends.rocm import RocmError
from pd_monitor.clocks.command import main as clocks
from pd_monitor.clocks.command import restore_at_start
from pd_monitor.clocks.plan import ClockError
from pd_monitor.clocks.settings import ClockSettings
from pd_monitor.files import write_role_files
from pd_monitor.settings import Settings

_log = logging.getLogger("pd_monitor")


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. An error of the sampler ends the process: an exporter that does not sample is of no use."""
    try:
        monitor = Monitor(settings, await choose(settings))
    except RocmError as error:
        msg = f"pd-monitor: {error}"
        raise SystemExit(msg) from error
    runner = web.AppRunner(make_app(monitor), access_log=None)
    try:
        await runner.setup()
        await _listen(runner, settings)
        backend = monitor.sampler.backend
        _log.info(
            "listening", extra={"port": settings.monitor_port, "backend": backend.name, "simulated": backend.simulated}
        )
        # What is there now stays; looking through it for garbage again and again would be a part of the cost of sampling.
        gc.collect()
        gc.freeze()
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


def _restore_clocks() -> None:
    """Restore the changes of a killed clock holder, if that is allowed; otherwise log that they may still be in force."""
    try:
        for uuid in restore_at_start(load(ClockSettings)):
            _log.warning("clocks restored after a process was killed", extra={"gpu": uuid})
    except (ClockError, SettingsError) as error:
        _log.warning("clocks that a killed process changed may still be in force", extra={"reason": str(error)})


def split(arguments: Sequence[str]) -> int:
    """`pd-monitor split gpu.jsonl`: a file for each role of a recording."""
    parser = argparse.ArgumentParser(prog="pd-monitor split", description="One file per role from a recording.")
    parser.add_argument("recording", type=Path, help="a run's gpu.jsonl")
    parser.add_argument(
        "--out", type=Path, help="folder for prefill_gpu_data.json and the others (default: the recording's)"
    )
    options = parser.parse_args(arguments)
    try:
        for path in write_role_files(options.recording, options.out or options.recording.parent):
            print(path)
    except (OSError, msgspec.MsgspecError) as error:
        parser.exit(2, f"pd-monitor split: {options.recording}: {error}\n")
    return 0


def main() -> None:
    """Start with options and environment; status 1 if the port cannot be had, 2 for a bad setting."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["clocks"]:
        sys.exit(clocks(arguments[1:]))
    if arguments[:1] == ["split"]:
        sys.exit(split(arguments[1:]))
    settings = from_command_line(
        Settings, "pd-monitor", "Power, clocks and energy of every GPU: exporter and recorder."
    )
    log.set_up(settings.log_level)
    _restore_clocks()
    asyncio.run(serve(settings))
