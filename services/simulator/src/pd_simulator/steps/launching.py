"""When the processor of an engine has launched a step. Pure: time is an argument."""

from math import floor

from pd_simulator.profile import Launch
from pd_simulator.steps.step_time import StepWork


def place(period: int, engine: int) -> float:
    """A number from 0 to below 1 for every period of every engine, as if drawn; the same on every machine, and with numba."""
    mixed = ((period + 1000003 * engine) * 2654435761) % 4294967296
    mixed = ((mixed ^ (mixed >> 16)) * 1103515245) % 4294967296
    mixed = ((mixed ^ (mixed >> 13)) * 1664525) % 4294967296
    return float(mixed ^ (mixed >> 16)) / 4294967296


class Launching:
    """The processor of one engine, which launches one step after another; `engine` is the engine's number.

    Attributes:
        launched: when it had launched the last step of which the launch costs something.
    """

    def __init__(self, launch: Launch, engine: int = 0) -> None:
        self._launch = launch
        self._engine = engine
        self.launched = 0.0

    @property
    def costs(self) -> bool:
        """Whether launching costs anything at all."""
        return bool(self._launch.ms)

    def waits(self, work: StepWork, planned: float) -> float:
        """When a step that was planned at a time (s) is launched; 0 if that costs nothing."""
        launch = self._launch
        if not launch.ms or not work.prefill_tokens or work.prefill_tokens + work.decodes <= launch.graph_tokens:
            return 0.0
        self.launched = planned + self._ms(planned) / 1e3
        return self.launched

    def end(self, launched: float, end: float) -> float:
        """When a step ends that was launched then and for which the board alone would need until `end`."""
        return max(end, launched + self._launch.tail_ms / 1e3) if launched else end

    def _ms(self, at: float) -> float:
        launch = self._launch
        return launch.ms[int(place(floor(at / launch.period_s), self._engine) * len(launch.ms))]
