"""Built-in boards whose true power is known: a square wave. For trying the monitor out, and for tests of what is made of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pd_contracts.clock_events import CLOCK_EVENTS
from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.reading import Reading

# The board's own average looks back one second, as NVML's does on Ampere and later.
AVERAGE_WINDOW_S = 1.0
# No whole number of samples at 1 s, which would show the same phase forever.
PERIOD_S = 2.5


@dataclass(frozen=True, slots=True)
class SquareWave:
    """Power over time: `busy_w` for half a period, then `idle_w` for the other half; the first half starts at `phase_s`."""

    idle_w: float = 78.0
    busy_w: float = 625.0
    period_s: float = PERIOD_S
    phase_s: float = 0.0

    def busy(self, t: float) -> bool:
        return (t - self.phase_s) % self.period_s < self.period_s / 2

    def power_w(self, t: float) -> float:
        return self.busy_w if self.busy(t) else self.idle_w

    def energy_j(self, t: float) -> float:
        """The exact integral of the power from `phase_s` to `t`."""
        periods, rest = divmod(t - self.phase_s, self.period_s)
        busy_s = periods * self.period_s / 2 + min(rest, self.period_s / 2)
        return self.idle_w * (t - self.phase_s) + (self.busy_w - self.idle_w) * busy_s

    def average_w(self, t: float, window_s: float = AVERAGE_WINDOW_S) -> float:
        """The mean power of the window that ends at `t`."""
        return (self.energy_j(t) - self.energy_j(t - window_s)) / window_s


class WaveBoards:
    """One board per index; each is a quarter period ahead of the one before, so that they can be told apart."""

    name = "waves"
    simulated = True

    def __init__(self, indices: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        start = clock()
        self.waves = {index: SquareWave(phase_s=start - number * PERIOD_S / 4) for number, index in enumerate(indices)}
        self._gpus = tuple(
            GpuInfo(
                index=index,
                name="pdstack square wave (SIMULATED)",
                uuid=f"SIM-wave-{index}",
                power_limit_w=700.0,
                memory_bytes=80 << 30,
            )
            for index in indices
        )

    async def sample(self) -> Reading:
        t = self._clock()
        return Reading(self._gpus, tuple(_sample(index, wave, t) for index, wave in self.waves.items()))

    async def close(self) -> None: ...


def _sample(index: int, wave: SquareWave, t: float) -> GpuSample:
    busy = wave.busy(t)
    return GpuSample(
        t=t,
        index=index,
        power_w=wave.power_w(t),
        power_average_w=wave.average_w(t),
        energy_mj=wave.energy_j(t) * 1e3,
        sm_clock_mhz=1980 if busy else 345,
        memory_clock_mhz=3201,
        utilization=1.0 if busy else 0.0,
        memory_utilization=0.4 if busy else 0.0,
        temperature_c=45.0,
        memory_used_bytes=40 << 30,
        throttle_reasons=0 if busy else CLOCK_EVENTS["gpu_idle"],
    )
