"""One NVIDIA board through its NVML handle: which readings exist, and which of them are due.

Every call takes the driver's lock, and some take milliseconds, so only what a recording needs at its own rate is read at every
sample: power, the energy counter and the SM clock. What changes slowly is read every second, what only the exporter shows every
ten; between two readings a sample repeats the last value. `nvmlDeviceGetPcieThroughput` is never called: it blocks for 20 ms per direction.

What is easy to overlook in NVML, and what follows from it here:

- `nvmlDeviceGetFieldValues` answers success although single fields failed; an unsupported field then holds a stale or zero
  value. So every field's own return code is checked.
- Field 186 is the instantaneous power, 185 the board's average (about 1 s on Ampere and later). `nvmlDeviceGetPowerUsage` is one
  or the other, depending on the architecture, so it is not used.
- `NVMLLibraryMismatchError` is no `NVMLError`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from pd_contracts.records import GpuSample
from pd_monitor.reading import Details

Handle = Any  # an opaque pointer of the library

UNREADABLE: Final = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
# After these a handle, or the whole library, answers nothing until NVML has been opened again.
_LOST: Final = frozenset({
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_GPU_NOT_FOUND,
})  # fmt: skip
_REMEDIES: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver here; a container needs `--gpus all` (or `gpus: all`)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA kernel driver",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated under this process; restart it",
}
_VALUE: Final = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
_MEMORY_SCOPE: Final = 2
_ALL_LINKS: Final = 0xFFFFFFFF
# A tick may come a little early; what is due within this share of its period is read with it.
_EARLY: Final = 0.05

MEDIUM_S: Final = 1.0
SLOW_S: Final = 10.0


class BoardLostError(Exception):
    """The board, or the driver under it, is gone; the message is the reason."""


@dataclass(frozen=True, slots=True)
class _Field:
    """One NVML field: its name here, number, scope (0 is the whole GPU) and the factor to our unit."""

    name: str
    number: int
    scope: int = 0
    factor: float = 1


@dataclass(frozen=True, slots=True)
class _Call:
    """One NVML call and the names of what it returns."""

    names: tuple[str, ...]
    read: Callable[[Handle], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Group:
    """Readings that are taken together; `ids` is what NVML wants of the fields, made once."""

    fields: tuple[_Field, ...]
    calls: tuple[_Call, ...]
    ids: tuple[tuple[int, int], ...]


def _group(fields: tuple[_Field, ...], calls: tuple[_Call, ...]) -> _Group:
    return _Group(fields, calls, tuple((field.number, field.scope) for field in fields))


def _temperature(handle: Handle) -> tuple[float]:
    try:
        return (float(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)),)
    except UNREADABLE:  # drivers before 570 have only the older call, which CUDA 14 removes
        return (float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),)


def _utilization(handle: Handle) -> tuple[float, float]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return rates.gpu / 100, rates.memory / 100


def _processes(handle: Handle) -> tuple[dict[int, int | None]]:
    return ({process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)},)


_FAST: Final = _group(
    (
        _Field("power_w", pynvml.NVML_FI_DEV_POWER_INSTANT, factor=1e-3),
        _Field("power_average_w", pynvml.NVML_FI_DEV_POWER_AVERAGE, factor=1e-3),
        _Field("energy_mj", pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
    ),
    (_Call(("sm_clock_mhz",), lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),)),),
)
_THROTTLED: Final = "throttled_s."
_MEDIUM: Final = _group(
    (
        _Field("power_limit_w", pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT, factor=1e-3),
        _Field("memory_power_w", pynvml.NVML_FI_DEV_POWER_AVERAGE, _MEMORY_SCOPE, 1e-3),
        _Field(_THROTTLED + "sw_power_cap", pynvml.NVML_FI_DEV_PERF_POLICY_POWER, factor=1e-9),
        _Field(_THROTTLED + "sync_boost", pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST, factor=1e-9),
        _Field(_THROTTLED + "sw_thermal", 269, factor=1e-9),  # nvidia-ml-py before 13 has no names for these three
        _Field(_THROTTLED + "hw_thermal", 270, factor=1e-9),
        _Field(_THROTTLED + "hw_power_brake", 271, factor=1e-9),
    ),
    (
        _Call(("utilization", "memory_utilization"), _utilization),
        _Call(("temperature_c",), _temperature),
        _Call(("memory_used_bytes",), lambda handle: (pynvml.nvmlDeviceGetMemoryInfo(handle).used,)),
        _Call(("memory_clock_mhz",), lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),)),
        _Call(("throttle_reasons",), lambda handle: (pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),)),
        _Call(
            ("graphics_clock_mhz",), lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_GRAPHICS),)
        ),
    ),
)
_SLOW: Final = _group(
    (
        _Field("pcie_tx_bytes", 197),
        _Field("pcie_rx_bytes", 198),
        _Field("nvlink_tx_bytes", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS, 1024),
        _Field("nvlink_rx_bytes", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS, 1024),
    ),
    (_Call(("processes",), _processes),),
)
_NOT_SUPPORTED: Final = str(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
# What a sample has; the other readings are details.
_IN_SAMPLE: Final = frozenset(GpuSample.__struct_fields__)


class Board:
    """The readings of one handle. Whoever opens NVML again makes a new one."""

    def __init__(self, index: int, handle: Handle, now: float, medium_s: float = MEDIUM_S) -> None:
        """Everything is due at first, and then, so that the boards of a host do not all take long at once, one after the other."""
        self.index = index
        self.details = Details()
        self.failed: tuple[str, ...] = ()
        self._handle = handle
        self._medium = _Slower(_MEDIUM, medium_s, index, now)
        self._slow = _Slower(_SLOW, SLOW_S, index, now)

    def sample(self, clock: Callable[[], float]) -> GpuSample:
        """Read what is due.

        Raises:
            BoardLostError: if the board answers nothing any more.
        """
        now = clock()
        values, errors = _read(self._handle, _FAST)
        if not values and _NOT_SUPPORTED not in errors.values():
            # A single call may fail; if none works although the board has these readings, the driver is gone.
            raise BoardLostError(", ".join(dict.fromkeys(errors.values())))
        failed = list(errors)
        for slower in (self._medium, self._slow):
            if slower.read_if_due(self._handle, now):
                failed += slower.errors
                self.details = _details({**self._medium.values, **self._slow.values})
        self.failed = tuple(failed)
        return GpuSample(
            t=clock(),
            index=self.index,
            errors=errors | self._medium.sample_errors,
            **values,
            **self._medium.sample_values,
        )


class _Slower:
    """A group that is read once a period; its last values stand in between."""

    def __init__(self, group: _Group, period_s: float, index: int, now: float) -> None:
        self.values: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        self.sample_values: dict[str, Any] = {}
        self.sample_errors: dict[str, str] = {}
        self._group = group
        self._period_s = period_s
        # The first period is shorter by a share that differs between boards.
        self._shift_s = period_s * (index % 8) / 8
        self._due = now

    def read_if_due(self, handle: Handle, now: float) -> bool:
        if now < self._due - _EARLY * self._period_s:
            return False
        self.values, self.errors = _read(handle, self._group)
        self.sample_values = {name: value for name, value in self.values.items() if name in _IN_SAMPLE}
        self.sample_errors = {name: reason for name, reason in self.errors.items() if name in _IN_SAMPLE}
        self._due = now + self._period_s - self._shift_s
        self._shift_s = 0.0
        return True


def sentence(error: Exception) -> str:
    """What NVML's error says, and what to do about it."""
    remedy = _REMEDIES.get(getattr(error, "value", None))
    return f"{error}: {remedy}" if remedy else str(error)


def _details(values: Mapping[str, Any]) -> Details:
    throttled = {name.removeprefix(_THROTTLED): value for name, value in values.items() if name.startswith(_THROTTLED)}
    plain = {name: value for name, value in values.items() if name not in _IN_SAMPLE and "." not in name}
    return Details(throttled_s=throttled, **plain)


def _read(handle: Handle, group: _Group) -> tuple[dict[str, Any], dict[str, str]]:
    values, errors = _read_fields(handle, group)
    for call in group.calls:
        try:
            values.update(zip(call.names, call.read(handle), strict=True))
        except UNREADABLE as error:
            errors.update(dict.fromkeys(call.names, _reason(error)))
    return values, errors


def _read_fields(handle: Handle, group: _Group) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    try:
        fields = pynvml.nvmlDeviceGetFieldValues(handle, group.ids)
    except UNREADABLE as error:
        return values, dict.fromkeys((field.name for field in group.fields), _reason(error))
    for want, field in zip(group.fields, fields, strict=True):
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            errors[want.name] = _reason(pynvml.NVMLError(field.nvmlReturn))
        elif field.valueType not in _VALUE:
            errors[want.name] = f"value type {field.valueType} is unknown"
        else:
            values[want.name] = getattr(field.value, _VALUE[field.valueType]) * want.factor
    return values, errors


def _reason(error: Exception) -> str:
    """The reason of one failed reading; raises if it means that the whole board is gone."""
    if getattr(error, "value", None) in _LOST:
        raise BoardLostError(sentence(error))
    return str(error)
