"""What a back end gives, and what the sampler makes of it."""

from dataclasses import dataclass
from typing import Protocol

from pd_contracts.records import GpuInfo, GpuSample

# The key of `GpuSample.errors` that stands for all readings of a GPU: the board as a whole did not answer.
WHOLE_GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Reading:
    """All GPUs at one moment. `problem` says in a sentence what the samples cannot: why there are none, or who is missing."""

    gpus: tuple[GpuInfo, ...] = ()
    samples: tuple[GpuSample, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """One reading with its times: monotonic seconds before and after the call, and the wall's at its end.

    `missed` counts the ticks before it that were due but skipped.
    """

    begun: float
    ended: float
    wall: float
    reading: Reading
    missed: int = 0

    @property
    def readable(self) -> bool:
        """True if at least one GPU answered."""
        return any(answered(sample) for sample in self.reading.samples)


class Backend(Protocol):
    """Where readings come from. A GPU that fails is an error in its sample, never an exception."""

    @property
    def name(self) -> str:
        """What a recording's header calls it."""

    @property
    def simulated(self) -> bool:
        """True if no number comes from real hardware."""

    async def sample(self) -> Reading:
        """Read every GPU now."""

    async def close(self) -> None:
        """Give everything back."""


def answered(sample: GpuSample) -> bool:
    """True if the board gave at least some of its readings."""
    return WHOLE_GPU not in sample.errors


def lost(index: int, t: float, reason: str) -> GpuSample:
    """The sample of a GPU that gave nothing."""
    return GpuSample(t=t, index=index, errors={WHOLE_GPU: reason})
