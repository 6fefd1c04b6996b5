"""What launching a step with prompts takes the processor, read off token stamps.

While the processor launches such a step, the tokens of the step before wait for it: it is the same thread that hands them out. So the gap before
those tokens, which belong to no prompt, is the time of the launch. How long the board then computes does not matter.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.steps import steps_of
from pd_simulator.profile import Launch

FEWEST: Final = 40
_VALUES: Final = 16
# The queue of kernels of a longer prompt is full, and then the processor waits for the board.
_LONGEST: Final = 2048
# A gap of so many usual ones shows a launch; a shorter one may be that of any step.
_NOTICED: Final = 1.6


def launch_of(start: Launch, runs: Sequence[Measured]) -> Launch:
    """The launch times of plain engines; `start`'s if too few steps show them."""
    gaps = np.array([gap for run in runs if not run.part for gap in _gaps(run, start.graph_tokens)])
    if len(gaps) < FEWEST:
        return start
    noticed = gaps[gaps[:, 0] > _NOTICED * gaps[:, 1], 0]
    if len(noticed) < len(gaps) / 2:
        return msgspec.structs.replace(start, ms=[])
    shares = (np.arange(_VALUES) + 0.5) / _VALUES
    return msgspec.structs.replace(start, ms=[round(float(value), 1) for value in np.quantile(noticed, shares)])


def _gaps(run: Measured, graph_tokens: int) -> Iterator[tuple[float, float]]:
    """Milliseconds before the tokens that wait for a launch, and of a usual step of that engine."""
    for streams in run.streams.values():
        if not any(len(stream.stamps) > 1 for stream in streams):
            continue
        steps = steps_of(streams)
        gaps, busy = np.diff(steps.at) * 1e3, (steps.tokens - steps.ended) > 0
        usual = float(np.median(gaps)) if len(gaps) else 0.0
        for step in range(3, len(gaps)):
            tokens = int(steps.prompts[step])
            begins = steps.begun[step] > 0 and steps.begun[step - 1] == 0 and busy[step - 3 : step].all()
            if begins and tokens + steps.tokens[step] > graph_tokens and tokens <= _LONGEST:
                yield float(gaps[step - 2]), usual
