"""An engine that gets its requests one by one takes the same steps as one that knows them all from the start."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import H200, loads, poisson

from pd_contracts.names import Role
from pd_planner.des.deployment import launching_of, limits_of, simulate, step_costs
from pd_planner.des.online import OnlineEngine
from pd_planner.traffic.load import Load
from pd_simulator.steps.engines import Engines

PLAIN = Engines(0, 1, None, 152_000)


def run_online(load: Load, extra: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """First and last tokens, with looks at the engine at other times too; a request is told when it comes."""
    engine = OnlineEngine(
        step_costs(H200, Role.COMBINED), limits_of(H200, PLAIN), launching_of(H200.launch, 0), len(load)
    )
    first, last = np.zeros(len(load)), np.zeros(len(load))
    arrivals = sorted([*((at, number) for number, at in enumerate(load.at)), *((at, -1) for at in extra)])
    for at, number in [*arrivals, (float("inf"), -1)]:
        for written in engine.run(at):
            (last if written.last else first)[written.request] = written.at
        if number >= 0:
            ready = at + H200.api_ms / 1e3
            engine.add(
                number, ready, int(load.prompt[number]), int(load.output[number]), external=int(load.cached[number])
            )
    return first, last


@given(loads(), st.lists(st.floats(0, 3, allow_nan=False), max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_online_engine_equals_the_one_that_knows_everything(load: Load, extra: list[float]) -> None:
    whole = simulate(H200, PLAIN, load)

    first, last = run_online(load, extra)

    np.testing.assert_allclose(first, whole.first, rtol=0, atol=1e-7)
    np.testing.assert_allclose(last, whole.last, rtol=0, atol=1e-7)


def test_a_request_that_is_ready_sooner_goes_before_one_that_was_told_before() -> None:
    engine = OnlineEngine(step_costs(H200, Role.COMBINED), limits_of(H200, PLAIN), launching_of(H200.launch, 0), 4)
    engine.add(7, 1.0, 512, 2)
    engine.add(8, 0.5, 512, 2)

    written = engine.run(float("inf"))

    assert [(one.request, one.last) for one in sorted(written, key=lambda one: one.at)] == [
        (8, False), (8, True), (7, False), (7, True),
    ]  # fmt: skip


def test_busy_times_add_up() -> None:
    load = poisson(10, 20, 512, 32)
    engine = OnlineEngine(
        step_costs(H200, Role.COMBINED), limits_of(H200, PLAIN), launching_of(H200.launch, 0), len(load)
    )
    for number in range(len(load)):
        engine.add(number, load.at[number] + H200.api_ms / 1e3, 512, 32)

    engine.run(float("inf"))

    np.testing.assert_allclose(engine.busy, simulate(H200, PLAIN, load).busy[0], rtol=1e-9)
