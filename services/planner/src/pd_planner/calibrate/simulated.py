"""Runs again, in simulation."""

from typing import Final

from pd_planner.calibrate.measured import Measured
from pd_planner.des.deployment import Outcome, simulate
from pd_planner.des.routed import adaptive
from pd_planner.traffic.load import Load
from pd_simulator.profile import Profile

# A run of few seconds meets its processors at few speeds, so its prediction is the mean over several.
_PROCESSORS: Final = 5


def outcomes(profile: Profile, run: Measured) -> list[Outcome]:
    """What the run's requests would have met: once; several times where the speed of processors matters."""
    times = _PROCESSORS if profile.launch.ms and not run.engines.prefills else 1
    return [served(profile, run, run.load, number) for number in range(times)]


def served(profile: Profile, run: Measured, load: Load, processors: int = 0) -> Outcome:
    """What this load would have met on the run's engines: by the run's own routes, or by the proxy's decisions where roles are adaptive."""
    if run.objectives is not None:
        return adaptive(profile, run.engines, load, run.objectives, processors=processors).outcome
    return simulate(profile, run.engines, load, run.route, processors)
