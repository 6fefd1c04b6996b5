"""What NVML reports. This module only reads and never sets anything. A machine without NVML is a fact, not a failure."""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pynvml

from pd_contracts.clock_events import slowdowns
from pd_control.doctor.facts import Gpu, Link, Nvml, Tenant

_UNREADABLE: Final = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
_READ, _NVLINK = 0, 2  # NVML_P2P_CAPS_INDEX_*; pynvml has one of them as a tuple
# Throttle reasons that need attention; idle, the power cap under load and clocks set by hand do not.
# Boards at full load run at their power cap, so this is not a finding.
_NORMAL: Final = "sw_power_cap"
_PATHS: Final = {
    0: "one board",
    10: "one PCIe switch",
    20: "several PCIe switches",
    30: "one host bridge",
    40: "one NUMA node",
    50: "between NUMA nodes",
}


def read() -> Nvml:
    """Open NVML, read everything, and close it."""
    try:
        pynvml.nvmlInit()
    except _UNREADABLE as error:
        return Nvml(problem=str(error))
    try:
        return _read()
    except _UNREADABLE as error:
        return Nvml(problem=str(error))
    finally:
        pynvml.nvmlShutdown()


def _read() -> Nvml:
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    cuda = _try(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return Nvml(
        driver=_try(pynvml.nvmlSystemGetDriverVersion) or "",
        cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
        gpus=[_gpu(index, handle) for index, handle in enumerate(handles)],
        links=[_link(a, b, handles) for a, b in combinations(range(len(handles)), 2)],
    )


def _try(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except _UNREADABLE:
        return None  # this board or driver does not report it; the check that needs it makes no finding


def _gpu(index: int, handle: Any) -> Gpu:
    memory = _try(pynvml.nvmlDeviceGetMemoryInfo, handle)
    mig = _try(pynvml.nvmlDeviceGetMigMode, handle)
    reasons = _try(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    states = list(_links(handle))
    return Gpu(
        index=index,
        name=_try(pynvml.nvmlDeviceGetName, handle) or "",
        memory_bytes=memory and memory.total,
        free_bytes=memory and memory.free,
        mig=None if mig is None else bool(mig[0]),
        throttled=[words for name, words in slowdowns(reasons).items() if name != _NORMAL],
        power_limit_w=_watts(_try(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        power_default_w=_watts(_try(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)),
        links_up=sum(states),
        # A board without an NVLink bridge or switch has all links off by design.
        links_down=len(states) - sum(states) if any(states) else 0,
        tenants=[_tenant(process) for process in _try(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []],
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def _links(handle: Any) -> Iterator[bool]:
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = _try(pynvml.nvmlDeviceGetNvLinkState, handle, number)
        if state is None:
            return  # there are no more
        yield bool(state)


def _tenant(process: Any) -> Tenant:
    try:
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:
        name = ""  # in another container, or gone
    return Tenant(pid=process.pid, name=name, memory_bytes=process.usedGpuMemory)


def _link(a: int, b: int, handles: list[Any]) -> Link:
    ancestor = _try(pynvml.nvmlDeviceGetTopologyCommonAncestor, handles[a], handles[b])
    return Link(
        a=a,
        b=b,
        p2p=_status(handles[a], handles[b], _READ),
        nvlink=_status(handles[a], handles[b], _NVLINK),
        path=_PATHS.get(ancestor, ""),
    )


def _status(a: Any, b: Any, index: int) -> bool | None:
    status = _try(pynvml.nvmlDeviceGetP2PStatus, a, b, index)
    return None if status is None else bool(status == pynvml.NVML_P2P_STATUS_OK)
