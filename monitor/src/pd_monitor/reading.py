"""The readings of a back end, and the sampler's ticks made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from pd_contracts.records import GpuInfo, GpuSample

# The key of `GpuSample.errors` that stands for all readings of a GPU: the board as a whole did not answer.
WHOLE_GPU = "gpu"
# The essential readings: a GPU without any of these cannot be recorded.
POWER_READINGS: Final = ("power_w", "power_average_w", "energy_mj")


@dataclass(frozen=True, slots=True)
class Details:
    """Readings that are too rare, or matter too little, for every line of a recording; None is unknown.

    Attributes:
        power_limit_w: the limit in force now.
        memory_power_w: the memory's share of the power, where the board reports it.
        throttled_s: seconds, since the driver was loaded, with the clocks lowered for each reason.
        processes: bytes of GPU memory by process id, as the host numbers it; None where that is unknown.
        pcie_tx_bytes, pcie_rx_bytes, nvlink_tx_bytes, nvlink_rx_bytes: the board's counters, which may wrap.
    """

    power_limit_w: float | None = None
    memory_power_w: float | None = None
    graphics_clock_mhz: int | None = None
    throttled_s: Mapping[str, float] = field(default_factory=dict)
    processes: Mapping[int, int | None] | None = None
    pcie_tx_bytes: int | None = None
    pcie_rx_bytes: int | None = None
    nvlink_tx_bytes: int | None = None
    nvlink_rx_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """All GPUs at one moment. `problem` says in a sentence what the samples cannot: why there are none, or who is missing.

    `details` has what some back ends read beside the samples, by GPU index. `failed` names the readings that failed this time, where a
    sample's errors may be from an earlier one; None means that they are all of this one.
    """

    gpus: tuple[GpuInfo, ...] = ()
    samples: tuple[GpuSample, ...] = ()
    problem: str = ""
    details: Mapping[int, Details] = field(default_factory=dict)
    failed: tuple[str, ...] | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """The readings that failed this time, one entry per failure."""
        if self.failed is not None:
            return self.failed
        return tuple(name for sample in self.samples for name in sample.errors)


@dataclass(frozen=True, slots=True)
class Tick:
    """One reading with its times: monotonic seconds before and after the call, and the wall's at its end.

    `missed` counts the ticks before it that were due but skipped; `implausible` names readings that cannot be true, by GPU.
    """

    begun: float
    ended: float
    wall: float
    reading: Reading
    missed: int = 0
    implausible: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def readable(self) -> bool:
        """True if at least one GPU reports its power or energy."""
        return any(not silence(sample) for sample in self.reading.samples)


class Backend(Protocol):
    """Where readings come from. A GPU that fails is an error in its sample, never an exception."""

    @property
    def name(self) -> str:
        """What a recording's header calls it."""

    @property
    def simulated(self) -> bool:
        """True if no number comes from real hardware."""

    async def sample(self) -> Reading: ...

    async def close(self) -> None: ...


def answered(sample: GpuSample) -> bool:
    """True if the board gave at least some of its readings."""
    return WHOLE_GPU not in sample.errors


def silence(sample: GpuSample) -> str:
    """Why a GPU reports neither power nor energy; empty if it reports one of them."""
    if any(getattr(sample, name) is not None for name in POWER_READINGS):
        return ""
    reasons = dict.fromkeys(sample.errors.get(name, "") for name in (WHOLE_GPU, *POWER_READINGS))
    return ", ".join(filter(None, reasons)) or "no power and no energy"


def lost(index: int, t: float, reason: str) -> GpuSample:
    """The sample of a GPU that gave nothing."""
    return GpuSample(t=t, index=index, errors={WHOLE_GPU: reason})
