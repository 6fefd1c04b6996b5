# ruff: noqa: INP001  a script
"""How fast pd-plan simulates, beside the oracle that it must equal: pd_simulator's scheduler, a step at a time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from pd_contracts.names import Connector
from pd_planner.des.compiled import COMPILED
from pd_planner.des.deployment import simulate
from pd_planner.des.limits import Limits
from pd_planner.des.routed import adaptive
from pd_planner.search.candidates import Candidate, EngineLimits, candidates
from pd_planner.search.capacity import Setting, capacity, run
from pd_planner.search.fleet import Fleet, operate
from pd_planner.traffic.load import Load
from pd_planner.traffic.source import Traffic
from pd_simulator.profile import load_profile
from pd_simulator.steps.engines import Arrival, Engines, Order
from pd_simulator.steps.virtual_time import token_times

PROFILE = load_profile("h200-llama3-8b")
ENGINE = EngineLimits(PROFILE.memory.kv_tokens)
LIMITS = Limits({"ttft": 500.0, "tpot": 15.0})
_SMALLEST = 2000


def _poisson(rate: float, count: int) -> Load:
    gaps = np.random.default_rng(1).exponential(1 / rate, count)
    return Load.of(np.cumsum(gaps) - gaps[0], 2048, 128)


def _setting(count: int = 12_000) -> Setting:
    load = _poisson(10, count)
    rate = (count - 1) / float(load.at[-1])
    return Setting(PROFILE, Traffic(load, rate, None, False, "2048 → 128"), LIMITS, ENGINE)


def _seconds(call: Callable[[], object]) -> float:
    call()  # what is compiled at the first call is not what is measured
    begin = time.process_time()
    call()
    return time.process_time() - begin


def _loop(candidate: Candidate) -> Iterator[tuple[str, str, str]]:
    """The event loop on one deployment, and the oracle on the first of the same requests."""
    load, engines = _poisson(40.0, 100_000 if COMPILED else _SMALLEST), candidate.engines(ENGINE)
    took = _seconds(lambda: simulate(PROFILE, engines, load))
    yield (
        f"{candidate.label}, {len(load):,} requests of 2,048 → 128",
        f"{took:.2f} s",
        f"{len(load) / took:,.0f} requests/s",
    )
    part = load.first(_SMALLEST)
    columns = zip(part.at.tolist(), part.prompt.tolist(), part.output.tolist(), strict=True)
    arrivals = [Arrival(*each) for each in columns]
    slow = _seconds(lambda: token_times(PROFILE, engines, arrivals)) / _SMALLEST * len(load)
    yield "the same by the oracle", f"{slow:.2f} s", f"{slow / took:,.0f} times as long"


def _routed(count: int) -> tuple[str, str, str]:
    """Adaptive roles near their capacity: the proxy's own decisions about each request."""
    engines = Engines(0, count, Connector.P2P, ENGINE.kv_tokens, order=Order.HAND_OFF)
    load = _poisson(12.0 * count, 500 * count)
    took = _seconds(lambda: adaptive(PROFILE, engines, load, LIMITS.objectives))
    return (
        f"{count} adaptive engines, {len(load):,} requests of 2,048 → 128",
        f"{took:.2f} s",
        f"{len(load) / took:,.0f} requests/s",
    )


def rows() -> Iterator[tuple[str, str, str]]:
    """What, how long, and in other words."""
    for candidate in (Candidate(0, 4), Candidate(3, 1, Connector.NIXL)):
        yield from _loop(candidate)
    setting = _setting()
    some = list(candidates(6, [Connector.NIXL, Connector.P2P_NCCL, Connector.EXAMPLE]))[:36]
    took = _seconds(lambda: [capacity(setting, each) for each in some])
    yield f"{len(some)} candidates, capacity of each by bisection", f"{took:.2f} s", ""
    for count in (4, 8) if COMPILED else ():
        yield _routed(count)
    cell = Candidate(3, 1, Connector.NIXL)
    fleet = Fleet(cell, 256, 40.0)
    took = _seconds(lambda: operate(setting, fleet, 256 * 32.0))
    yield f"{fleet.gpus:,} GPUs as {fleet.label}, by one of the cells", f"{took:.3f} s", "60 s of load"
    plain = replace(cell, prefills=0, others=1024, connector=None)
    whole = replace(setting, traffic=replace(setting.traffic, load=_poisson(10, 82_000)))
    took = _seconds(lambda: run(whole, plain, 8192.0, 10.0))
    yield "1,024 plain engines, each of them", f"{took:.2f} s", "10 s of load, 81,920 requests"
