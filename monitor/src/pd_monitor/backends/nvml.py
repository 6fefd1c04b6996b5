"""NVIDIA's boards through NVML. It reads, and calls no setter.

Indices follow the PCI bus: when a GPU falls off it, the others move up. So a board keeps its index by its UUID.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pynvml

from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.backends.nvml_board import UNREADABLE, Board, BoardLostError, Handle, sentence
from pd_monitor.reading import WHOLE_GPU, Reading, lost

_LONGEST_RETRY_S: Final = 60.0


class Nvml:
    """All GPUs of this host; blocking, so for one thread at a time. Opens NVML at the first reading and again after a loss."""

    name = "nvml"
    simulated = False

    def __init__(self, retry_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first_retry_s = self._retry_s = retry_s
        self._retry_at = clock()
        self._open = False
        self._problem = ""
        self._gpus: dict[int, GpuInfo] = {}
        self._boards: dict[int, Board] = {}
        self._lost: dict[int, str] = {}

    def sample(self) -> Reading:
        """Read every GPU that was ever seen; one that is gone has an error instead of readings."""
        self._reopen_if_due()
        samples = tuple(self._sample(index) for index in sorted(self._gpus))
        if self._healthy:
            self._retry_s = self._first_retry_s
        live = [board for index, board in self._boards.items() if index not in self._lost]
        return Reading(
            gpus=tuple(self._gpus[index] for index in sorted(self._gpus)),
            samples=samples,
            problem=self._problem,
            details={board.index: board.details for board in live},
            failed=(*(name for board in live for name in board.failed), *(WHOLE_GPU for _ in self._lost)),
        )

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(*UNREADABLE):  # a driver that went away has nothing left to shut down
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
        self._boards.clear()
        try:
            pynvml.nvmlInit()
            self._open = True
            self._enumerate()
        except UNREADABLE as error:
            self._problem = sentence(error)
        self._lost = {index: self._problem or "not on the bus" for index in self._gpus if index not in self._boards}

    def _enumerate(self) -> None:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found: list[tuple[str, Handle]] = []
        self._problem = ""
        for position in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(position)
                found.append((pynvml.nvmlDeviceGetUUID(handle), handle))
            except UNREADABLE as error:
                self._problem = f"GPU {position}: {sentence(error)}"
        if not found and not self._problem:
            self._problem = "NVML works but finds no GPU"
        indices = keep_indices({info.uuid: index for index, info in self._gpus.items()}, [uuid for uuid, _ in found])
        for index, (uuid, handle) in zip(indices, found, strict=True):
            self._boards[index] = Board(index, handle, self._clock())
            self._gpus[index] = _describe(index, uuid, handle, driver)

    def _sample(self, index: int) -> GpuSample:
        if index in self._lost:
            return lost(index, self._clock(), self._lost[index])
        try:
            return self._boards[index].sample(self._clock)
        except BoardLostError as error:
            self._lost[index] = str(error)
            self._retry_at = self._clock() + self._retry_s
            return lost(index, self._clock(), str(error))


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
    except UNREADABLE:
        return None  # a board that does not report its limit, for example, can still be read
