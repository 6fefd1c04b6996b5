"""The proxy between clients and engines: it serves until SIGTERM or SIGINT."""

import asyncio
import signal
import sys

import uvloop

from pd_contracts import log
from pd_contracts.libraries import plain
from pd_contracts.settings import from_command_line
from pd_proxy.processes.prepare import prepare
from pd_proxy.processes.server import serve
from pd_proxy.settings import Settings


async def run(settings: Settings) -> None:
    """Serve; the first signal starts a graceful shutdown."""
    shutdown = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.set)
    await serve(settings, shutdown)


def main() -> int:
    """Read the settings and serve; exit status 1 with a message if a port cannot be opened, 2 for invalid settings."""
    settings = from_command_line(Settings, "pd-proxy", __doc__ or "")
    try:
        log.set_up(settings.log_level)
    except ValueError as error:
        sys.stderr.write(f"pd-proxy: LOG_LEVEL: {error}\n")
        return 2
    prepare()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except OSError as error:
        # A file has a name; an address that is taken does not, and is in the system's own sentence.
        reason = f"{error.filename}: {plain(error)}" if error.filename else error
        sys.stderr.write(f"pd-proxy: cannot start: {reason}\n")
        return 1
    return 0
