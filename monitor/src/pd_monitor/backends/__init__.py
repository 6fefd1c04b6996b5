"""Back ends, and the choice among them."""

import asyncio
import logging
from typing import Final

from pd_monitor.backends.boards import SimulatedBoards
from pd_monitor.backends.nvml import Nvml
from pd_monitor.backends.rocm import LIBRARIES, Rocm, RocmError
from pd_monitor.backends.threaded import Threaded
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.kubelet import WithPods
from pd_monitor.pods import parse_patterns
from pd_monitor.reading import Backend
from pd_monitor.settings import Settings

LONGEST_PROBE_S: Final = 10.0

_log = logging.getLogger(__name__)


async def choose(settings: Settings) -> Backend:
    """The back end that the settings ask for, with the pods' names where there is a kubelet to ask.

    Raises:
        RocmError: if ROCm SMI is asked for by name and cannot be used.
    """
    backend = await _choose(settings)
    if not settings.pod_resources_socket:
        return backend
    return WithPods(backend, settings.pod_resources_socket, parse_patterns(settings.pod_role_patterns))


async def _choose(settings: Settings) -> Backend:
    """The back end that the settings ask for; `auto` prefers real hardware: NVML's, then ROCm SMI's.

    Without any GPU the NVML back end is returned all the same: it says what is missing and keeps looking.
    """
    if settings.monitor_backend == "simulated":
        return _simulated(settings)
    if settings.monitor_backend == "rocm":
        return Threaded(_rocm(settings))
    nvml = Threaded(Nvml(settings.nvml_retry_s))
    if settings.monitor_backend == "nvml":
        return nvml
    other = await _instead_of(nvml, settings)
    if other is None:
        return nvml
    await nvml.close()
    return other


async def _instead_of(nvml: Threaded, settings: Settings) -> Backend | None:
    try:
        async with asyncio.timeout(LONGEST_PROBE_S):
            found = await nvml.sample()
    except TimeoutError:
        return None  # a driver is there but hangs: the monitor starts, and says so
    return None if found.gpus else _without_nvml(settings, found.problem)


def _without_nvml(settings: Settings, problem: str) -> Backend | None:
    try:
        rocm = _rocm(settings)
        if rocm.sample().gpus:
            _log.warning("reading through ROCm SMI, which is untested on hardware", extra={"nvml": problem})
            return Threaded(rocm)
        rocm.close()
    except RocmError as error:
        _log.debug("no ROCm SMI", extra={"reason": str(error)})
    return _simulated(settings) if settings.sim_boards else None


def _rocm(settings: Settings) -> Rocm:
    return Rocm((settings.rocm_smi_library,) if settings.rocm_smi_library else LIBRARIES)


def _simulated(settings: Settings) -> Backend:
    if settings.sim_boards:
        return SimulatedBoards(settings.sim_boards)
    return WaveBoards(sorted(settings.roles) or [0, 1])
