"""The compiled loops before the first question: compiling takes longer than most questions, and two cores can share it."""

from collections.abc import Callable

import numpy as np

from pd_analysis.words.language import tr
from pd_contracts.names import Role
from pd_planner.cores import spread
from pd_planner.des.compiled import to_be_kept
from pd_planner.des.decoding import serve
from pd_planner.des.deployment import launching_of, limits_of, prefilled, round_robin, simulate, step_costs
from pd_planner.des.model import BUSY_COLUMNS
from pd_planner.des.online import OnlineEngine
from pd_planner.traffic.load import Load
from pd_simulator.profile import Profile
from pd_simulator.steps.engines import Engines

_LOAD = Load.of(np.array([0.0, 0.1]), 16, 2)


def prepare(profile: Profile, say: Callable[[str], None]) -> None:
    """Have every loop compiled, or read from the disk."""
    loops = (_answers, _prompts)
    if to_be_kept(serve):
        say(tr("compiling, which takes about ten seconds; only the first plan on a machine does"))
        spread(lambda loop: loop(profile), loops)  # what these processes compile, this one reads
    for loop in loops:
        loop(profile)


def _answers(profile: Profile) -> None:
    """Engines that write answers, with all requests known or one by one."""
    engines = Engines(0, 1, None, profile.memory.kv_tokens)
    simulate(profile, engines, _LOAD)
    online = OnlineEngine(
        step_costs(profile, Role.COMBINED), limits_of(profile, engines), launching_of(profile.launch, 0), 4
    )
    online.add(0, 0.0, 16, 2)
    online.run(1.0)


def _prompts(profile: Profile) -> None:
    """Prefill engines."""
    engines = Engines(1, 1, next(iter(profile.handoff), None), profile.memory.kv_tokens)
    if engines.connector is not None:
        prefilled(profile, engines, _LOAD, round_robin(engines, len(_LOAD)), np.zeros((1, BUSY_COLUMNS)))
