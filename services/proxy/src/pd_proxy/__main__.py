"""`pd-proxy`: serve until SIGTERM or SIGINT."""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from typing import Final

import uvloop

from pd_contracts import log
from pd_contracts.settings import from_command_line
from pd_proxy.server import serve
from pd_proxy.settings import Settings

DESCRIPTORS: Final = 1 << 20


async def run(settings: Settings) -> None:
    """Serve; the first signal starts the graceful end."""
    shutdown = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.set)
    await serve(settings, shutdown)


def save_time() -> None:
    """Leave out what costs time at every request and is of no use here; docs/proxy-cost.md says how much."""
    # What no line of the log shows: a look at the stack, the process and the thread (`logging`, Optimization).
    vars(logging)["_srcfile"] = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # What was imported stays, so no search for garbage needs to walk over it while streams wait.
    gc.freeze()


def allow_many_streams() -> None:
    """A stream needs two descriptors, and the usual limit of 1024 would refuse the 500th."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say; then the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Read the settings and serve; exit status 1 with a sentence if a port cannot be opened, 2 for bad settings."""
    settings = from_command_line(Settings, "pd-proxy", __doc__ or "")
    try:
        log.set_up(settings.log_level)
    except ValueError as error:
        sys.stderr.write(f"pd-proxy: LOG_LEVEL: {error}\n")
        return 2
    save_time()
    allow_many_streams()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except OSError as error:
        sys.stderr.write(f"pd-proxy: cannot start: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
