"""`pd-simulator`: read the settings, serve until told to stop."""

import asyncio
import gc
import signal
import sys

import uvloop

from pd_contracts import log
from pd_contracts.profiles import ProfileError
from pd_contracts.settings import from_command_line
from pd_simulator.profile import Profile, load_profile
from pd_simulator.server import serving
from pd_simulator.settings import Settings


async def _serve(settings: Settings, profile: Profile) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(settings, profile):
        # What exists now lives as long as the process; collecting it again and again would cost milliseconds inside steps.
        gc.collect()
        gc.freeze()
        await stop.wait()


def main() -> None:
    """Run one engine; status 2 for settings that cannot be used, 1 for a port that is taken or a proxy that has no address."""
    settings = from_command_line(Settings, "pd-simulator", "A vLLM engine without a GPU.")
    log.set_up(settings.log_level)
    try:
        profile = load_profile(settings.sim_profile)
    except ProfileError as error:
        sys.stderr.write(f"pd-simulator: SIM_PROFILE: {error}\n")
        sys.exit(2)
    try:
        uvloop.run(_serve(settings, profile))
    except OSError as error:
        sys.exit(f"pd-simulator: {error}")
