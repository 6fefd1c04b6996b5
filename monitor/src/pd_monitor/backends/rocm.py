"""AMD's boards, and Hygon's DCUs, through `librocm_smi64`. It reads, and calls no setter. UNTESTED ON HARDWARE.

Written from the library's header and tested against a library of our own that keeps to it. What the header leaves open:

- `rsmi_frequencies_t` got a leading `has_deep_sleep` in ROCm 6; both layouts are told apart by what can be in them.
- The energy counter is a number of steps and the microjoules of a step. It is shown only while it agrees with the power.
- Calls that Hygon's documentation gives in tens of milliseconds (utilisation, memory) are made every second, not at every sample.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.backends.energy_gate import EnergyGate
from pd_monitor.reading import Reading, lost

# The unversioned name comes with the development files; Hygon's driver brings a library of its own.
LIBRARIES: Final = (
    "librocm_smi64.so",
    "librocm_smi64.so.7",
    "librocm_smi64.so.6",
    "librocm_smi64.so.5",
    "/opt/rocm/lib/librocm_smi64.so",
    "/opt/hyhal/lib/librocm_smi64.so",
)
_SLOW_S: Final = 1.0
_SYSTEM_CLOCK, _MEMORY_CLOCK = 0, 4
_VRAM = 0
_EDGE, _JUNCTION = 0, 1
_CURRENT_TEMPERATURE = 0
_TEXT_BYTES = 256
_FREQUENCY_BYTES = 1024

_u32, _u64, _i64 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64


class RocmError(Exception):
    """One call failed, or the library cannot be used; the message is the reason."""


class Library:
    """The calls that we make, with their types."""

    def __init__(self, names: Sequence[str] = LIBRARIES) -> None:
        """Load the first that is there and start it.

        Raises:
            RocmError: if none is, or it does not start.
        """
        self._library = _load(names)
        self._call("rsmi_init", _u64(0))

    def count(self) -> int:
        number = _u32()
        self._call("rsmi_num_monitor_devices", ctypes.byref(number))
        return number.value

    def u32(self, name: str, board: int) -> int:
        """A call of the form f(board, uint32_t *)."""
        value = _u32()
        self._call(name, _u32(board), ctypes.byref(value))
        return value.value

    def u64(self, name: str, board: int, *between: int) -> int:
        """A call of the form f(board, [uint32_t,] uint64_t *)."""
        value = _u64()
        self._call(name, _u32(board), *map(_u32, between), ctypes.byref(value))
        return value.value

    def temperature_c(self, board: int) -> float:
        """Of the junction, which limits the clocks; boards without that sensor have the edge's."""
        value = _i64()
        for sensor in (_JUNCTION, _EDGE):
            try:
                where = _u32(board), _u32(sensor), ctypes.c_int(_CURRENT_TEMPERATURE)
                self._call("rsmi_dev_temp_metric_get", *where, ctypes.byref(value))
            except RocmError:
                if sensor == _EDGE:
                    raise
            else:
                break
        return value.value / 1e3

    def clock_mhz(self, board: int, kind: int) -> int:
        buffer = ctypes.create_string_buffer(_FREQUENCY_BYTES)
        self._call("rsmi_dev_gpu_clk_freq_get", _u32(board), ctypes.c_int(kind), buffer)
        return round(current_frequency(buffer.raw) / 1e6)

    def energy_j(self, board: int) -> float:
        """The counter: steps times microjoules per step."""
        steps, step_uj, stamp = _u64(), ctypes.c_float(), _u64()
        out = ctypes.byref(steps), ctypes.byref(step_uj), ctypes.byref(stamp)
        self._call("rsmi_dev_energy_count_get", _u32(board), *out)
        return steps.value * step_uj.value / 1e6

    def name(self, board: int) -> str:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        self._call("rsmi_dev_name_get", _u32(board), text, ctypes.c_size_t(_TEXT_BYTES))
        return text.value.decode(errors="replace")

    def driver(self) -> str:
        """The kernel driver's version."""
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        self._call("rsmi_version_str_get", ctypes.c_int(0), text, _u32(_TEXT_BYTES))
        return text.value.decode(errors="replace")

    def close(self) -> None:
        self._call("rsmi_shut_down")

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            msg = f"the library has no {name}"
            raise RocmError(msg) from error
        if status := function(*arguments):
            msg = f"{name}: status {status}"
            raise RocmError(msg)


def _load(names: Sequence[str]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue  # the next one may be there
    msg = "there is no librocm_smi64"
    raise RocmError(msg)


def current_frequency(raw: bytes) -> int:
    """The frequency in Hz from a `rsmi_frequencies_t` of either layout, out of a buffer that was zero before.

    Raises:
        RocmError: if it fits neither.
    """
    words = [int.from_bytes(raw[at : at + 4], "little") for at in (0, 4, 8)]
    for number, current, first in ((words[0], words[1], 8), (words[1], words[2], 16)):
        if 0 < number <= 64 and current < number:
            at = first + 8 * current
            return int.from_bytes(raw[at : at + 8], "little")
    msg = "rsmi_dev_gpu_clk_freq_get: unknown format of the answer"
    raise RocmError(msg)


@dataclass(slots=True)
class _Board:
    """What is kept of a board between samples."""

    info: GpuInfo
    gate: EnergyGate = field(default_factory=EnergyGate)
    slow: dict[str, Any] = field(default_factory=dict)
    slow_errors: dict[str, str] = field(default_factory=dict)
    slow_due: float = float("-inf")


class Rocm:
    """All boards; blocking, so for one thread at a time."""

    name = "rocm-smi (untested on hardware)"
    simulated = False

    def __init__(self, names: Sequence[str] = LIBRARIES, clock: Callable[[], float] = time.monotonic) -> None:
        """Load the library and find the boards.

        Raises:
            RocmError: if there is no library, or it does not start.
        """
        self._clock = clock
        self._library = Library(names)
        self._boards = [_Board(self._info(index)) for index in range(self._library.count())]

    def sample(self) -> Reading:
        samples = tuple(self._sample(board) for board in self._boards)
        problem = "" if self._boards else "ROCm SMI works but finds no GPU"
        return Reading(tuple(board.info for board in self._boards), samples, problem)

    def close(self) -> None:
        with contextlib.suppress(RocmError):  # nothing is held that the process's end does not free
            self._library.close()

    def _sample(self, board: _Board) -> GpuSample:
        library, index = self._library, board.info.index
        values, errors = _gather({
            "power_w": lambda: library.u64("rsmi_dev_current_socket_power_get", index) / 1e6,
            "power_average_w": lambda: library.u64("rsmi_dev_power_ave_get", index, 0) / 1e6,
            "energy_mj": lambda: library.energy_j(index) * 1e3,
            "sm_clock_mhz": lambda: library.clock_mhz(index, _SYSTEM_CLOCK),
            "memory_clock_mhz": lambda: library.clock_mhz(index, _MEMORY_CLOCK),
        })  # fmt: skip
        t = self._clock()
        if t >= board.slow_due - _SLOW_S / 20:
            board.slow, board.slow_errors = self._slow(index)
            board.slow_due = t + _SLOW_S
        if not values and not board.slow:
            return lost(index, t, next(iter(errors.values())))
        energy_mj = values.get("energy_mj")
        power = values.get("power_w", values.get("power_average_w"))
        if energy_mj is not None and not board.gate.passes(t, power, energy_mj / 1e3):
            del values["energy_mj"]
            errors["energy_mj"] = board.gate.reason
        return GpuSample(t=t, index=index, errors=errors | board.slow_errors, **values, **board.slow)

    def _slow(self, index: int) -> tuple[dict[str, Any], dict[str, str]]:
        library = self._library
        return _gather({
            "utilization": lambda: library.u32("rsmi_dev_busy_percent_get", index) / 100,
            "memory_utilization": lambda: library.u32("rsmi_dev_memory_busy_percent_get", index) / 100,
            "temperature_c": lambda: library.temperature_c(index),
            "memory_used_bytes": lambda: library.u64("rsmi_dev_memory_usage_get", index, _VRAM),
        })  # fmt: skip

    def _info(self, index: int) -> GpuInfo:
        library = self._library
        known, _ = _gather({
            "name": lambda: library.name(index),
            "uuid": lambda: f"{library.u64('rsmi_dev_unique_id_get', index):016x}",
            "power_limit_w": lambda: library.u64("rsmi_dev_power_cap_get", index, 0) / 1e6,
            "driver": library.driver,
            "memory_bytes": lambda: library.u64("rsmi_dev_memory_total_get", index, _VRAM),
        })  # fmt: skip
        return GpuInfo(index=index, **{"name": "ROCm GPU", **known})


def _gather(calls: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    values, errors = {}, {}
    for name, call in calls.items():
        try:
            values[name] = call()
        except RocmError as error:
            errors[name] = str(error)
    return values, errors
