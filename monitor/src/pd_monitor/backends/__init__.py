"""Back ends, and the choice among them."""

from pd_monitor.backends.boards import SimulatedBoards
from pd_monitor.backends.nvml import Nvml
from pd_monitor.backends.threaded import Threaded
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.reading import Backend
from pd_monitor.settings import Settings


async def choose(settings: Settings) -> Backend:
    """The back end that the settings ask for; `auto` prefers real hardware.

    Without any GPU the NVML back end is returned all the same: it says what is missing and keeps looking.
    """
    if settings.monitor_backend == "simulated":
        return (
            SimulatedBoards(settings.sim_boards)
            if settings.sim_boards
            else WaveBoards(sorted(settings.roles) or [0, 1])
        )
    nvml = Threaded(Nvml(settings.nvml_retry_s))
    if settings.monitor_backend == "nvml" or not settings.sim_boards or (await nvml.sample()).gpus:
        return nvml
    await nvml.close()
    return SimulatedBoards(settings.sim_boards)
