"""Runs again, in simulation."""

from typing import Final

from pd_planner.calibrate.measured import Measured
from pd_planner.des.deployment import Outcome, simulate
from pd_simulator.profile import Profile

# A run of few seconds meets its processors at few speeds, so its prediction is the mean over several.
_PROCESSORS: Final = 5


def outcomes(profile: Profile, run: Measured) -> list[Outcome]:
    """What the run's requests would have met: once; several times where the speed of processors matters."""
    times = _PROCESSORS if profile.launch.ms and not run.engines.prefills else 1
    return [simulate(profile, run.engines, run.load, run.route, number) for number in range(times)]
