"""The loads of the routing benchmark that change: what they are is what the page says."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks/routing"


@pytest.fixture(name="module")
def _module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARK)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("module", ["changing"], indirect=True)
def test_all_streams_have_their_rate_lengths_drift_and_a_tenant_begins_in_the_middle(module: ModuleType) -> None:
    loads = {case.name: case.load(50.0, 90.0, 1) for case in module.CHANGING}

    for load in loads.values():
        assert 50 * 90 * 0.9 < len(load) < 50 * 90 * 1.1
        assert (np.diff(load.at) >= 0).all()
        assert load.at[-1] < 90
    grows = loads["prompts grow"]
    assert grows.prompt[0] < 600
    assert grows.prompt[-1] > 7000
    joined = loads["conversation, then documents too"]
    documents = joined.at[(joined.prompt == 6000) & (joined.output == 64)]
    assert 44 < documents.min() < 47
    waves = loads["waves of conversation"].at
    assert ((waves > 18) & (waves < 27)).sum() > 3 * (waves < 9).sum()


@pytest.mark.parametrize("module", ["steps"], indirect=True)
def test_a_load_of_three_levels_has_the_same_first_one_whatever_follows(module: ModuleType) -> None:
    cases, capacity, world = map(importlib.import_module, ("cases", "capacity", "world"))
    setup = capacity.Setup(4, world.Policy("adaptive"), 1)
    low, high = (module.levels(cases.CASES[3], setup, 10.0, (0.85, factor, 0.8)) for factor in (1.1, 2.0))

    for load, factor in ((low, 1.1), (high, 2.0)):
        counts = np.histogram(load.at, [0, 30, 60, 90])[0] / (4 * 10 * 30)
        assert counts == pytest.approx([0.85, factor, 0.8], rel=0.1)
    first = low.at < 30
    assert (low.at[first] == high.at[high.at < 30]).all()
