"""NVIDIA's boards through NVML: the only module that imports pynvml. It reads, and calls no setter.

What NVML does not say loudly, and what follows from it here:

- `nvmlDeviceGetFieldValues` answers success although single fields failed; an unsupported field then holds a stale or zero
  value. So every field's own return code is checked.
- Field 186 is the instantaneous power, 185 the board's average (about 1 s on Ampere and later). `nvmlDeviceGetPowerUsage` is the
  one or the other depending on the architecture, so it is not used.
- `NVMLLibraryMismatchError` is no `NVMLError`.
- Indices follow the PCI bus: when a GPU falls off it, the others move up. So a board keeps its index by its UUID.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pynvml

from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.reading import Reading, lost

Handle = Any  # an opaque pointer of the library

_UNREADABLE: Final = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
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
# (attribute of GpuSample, field, factor): mW become W, the counter stays in mJ. Scope 0 is the whole GPU.
_FIELDS: Final = (
    ("power_w", pynvml.NVML_FI_DEV_POWER_INSTANT, 1e-3),
    ("power_average_w", pynvml.NVML_FI_DEV_POWER_AVERAGE, 1e-3),
    ("energy_mj", pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 1.0),
)
_FIELD_IDS: Final = [(field, 0) for _, field, _ in _FIELDS]
_LONGEST_RETRY_S: Final = 60.0


class _BoardLostError(Exception):
    """The board, or the driver under it, is gone; the message is the reason."""


def _temperature(handle: Handle) -> tuple[float]:
    try:
        return (float(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)),)
    except _UNREADABLE:  # drivers before 570 have only the older call, which CUDA 14 removes
        return (float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),)


def _utilization(handle: Handle) -> tuple[float, float]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return rates.gpu / 100, rates.memory / 100


_CALLS: Final[tuple[tuple[tuple[str, ...], Callable[[Handle], tuple[float, ...]]], ...]] = (
    (("sm_clock_mhz",), lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),)),
    (("memory_clock_mhz",), lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),)),
    (("utilization", "memory_utilization"), _utilization),
    (("temperature_c",), _temperature),
    (("memory_used_bytes",), lambda handle: (pynvml.nvmlDeviceGetMemoryInfo(handle).used,)),
    (("throttle_reasons",), lambda handle: (pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),)),
)


class Nvml:
    """All GPUs of this host; blocking, so for one thread at a time. Opens NVML at the first reading and again after a loss."""

    name = "nvml"
    simulated = False

    def __init__(self, retry_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is loaded yet."""
        self._clock = clock
        self._first_retry_s = self._retry_s = retry_s
        self._retry_at = clock()
        self._open = False
        self._problem = ""
        self._gpus: dict[int, GpuInfo] = {}
        self._handles: dict[int, Handle] = {}
        self._lost: dict[int, str] = {}

    def sample(self) -> Reading:
        """Read every GPU that was ever seen; one that is gone has an error instead of readings."""
        self._reopen_if_due()
        samples = tuple(self._sample(index) for index in sorted(self._gpus))
        if self._healthy:
            self._retry_s = self._first_retry_s
        return Reading(tuple(self._gpus[index] for index in sorted(self._gpus)), samples, self._problem)

    def close(self) -> None:
        """Leave NVML."""
        if self._open:
            self._open = False
            with contextlib.suppress(*_UNREADABLE):  # a driver that went away has nothing left to shut down
                pynvml.nvmlShutdown()

    @property
    def _healthy(self) -> bool:
        return self._open and bool(self._gpus) and not self._lost and not self._problem

    def _reopen_if_due(self) -> None:
        if self._healthy or self._clock() < self._retry_at:
            return
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
        self.close()
        self._handles.clear()
        try:
            pynvml.nvmlInit()
            self._open = True
            self._enumerate()
        except _UNREADABLE as error:
            self._problem = _sentence(error)
        self._lost = {index: self._problem or "not on the bus" for index in self._gpus if index not in self._handles}

    def _enumerate(self) -> None:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found: list[tuple[str, Handle]] = []
        self._problem = ""
        for position in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(position)
                found.append((pynvml.nvmlDeviceGetUUID(handle), handle))
            except _UNREADABLE as error:
                self._problem = f"GPU {position}: {_sentence(error)}"
        if not found and not self._problem:
            self._problem = "NVML works but finds no GPU"
        indices = keep_indices({info.uuid: index for index, info in self._gpus.items()}, [uuid for uuid, _ in found])
        for index, (uuid, handle) in zip(indices, found, strict=True):
            self._handles[index] = handle
            self._gpus[index] = _describe(index, uuid, handle, driver)

    def _sample(self, index: int) -> GpuSample:
        if index in self._lost:
            return lost(index, self._clock(), self._lost[index])
        try:
            values, errors = _read(self._handles[index])
        except _BoardLostError as error:
            self._lost[index] = str(error)
            self._retry_at = self._clock() + self._retry_s
            return lost(index, self._clock(), str(error))
        return GpuSample(t=self._clock(), index=index, errors=errors, **values)


def keep_indices(known: Mapping[str, int], found: Sequence[str]) -> list[int]:
    """An index for each UUID in NVML's order: a known board keeps its own, a new one gets its position or else the next free."""
    taken = set(known.values())
    indices = []
    for position, uuid in enumerate(found):
        index = known.get(uuid, position)
        while uuid not in known and index in taken:
            index += 1
        taken.add(index)
        indices.append(index)
    return indices


def _read(handle: Handle) -> tuple[dict[str, Any], dict[str, str]]:
    values, errors = _read_fields(handle)
    for names, call in _CALLS:
        try:
            values.update(zip(names, call(handle), strict=True))
        except _UNREADABLE as error:
            errors.update(dict.fromkeys(names, _reason(error)))
    return values, errors


def _read_fields(handle: Handle) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    try:
        fields = pynvml.nvmlDeviceGetFieldValues(handle, _FIELD_IDS)
    except _UNREADABLE as error:
        return values, dict.fromkeys((name for name, *_ in _FIELDS), _reason(error))
    for (name, _, factor), field in zip(_FIELDS, fields, strict=True):
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            errors[name] = _reason(pynvml.NVMLError(field.nvmlReturn))
        elif field.valueType not in _VALUE:
            errors[name] = f"value type {field.valueType} is unknown"
        else:
            values[name] = getattr(field.value, _VALUE[field.valueType]) * factor
    return values, errors


def _reason(error: Exception) -> str:
    """The reason of one failed reading; raises if it means that the whole board is gone."""
    if getattr(error, "value", None) in _LOST:
        raise _BoardLostError(_sentence(error))
    return str(error)


def _sentence(error: Exception) -> str:
    remedy = _REMEDIES.get(getattr(error, "value", None))
    return f"{error}: {remedy}" if remedy else str(error)


def _describe(index: int, uuid: str, handle: Handle, driver: str) -> GpuInfo:
    limit_mw = _optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuInfo(
        index=index,
        name=_optional(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        uuid=uuid,
        power_limit_w=None if limit_mw is None else limit_mw / 1e3,
        driver=driver,
        memory_bytes=None if memory is None else memory.total,
    )


def _optional(call: Callable[[Handle], Any], handle: Handle) -> Any:
    try:
        return call(handle)
    except _UNREADABLE:
        return None  # a board that does not tell, say, its limit can be read all the same
