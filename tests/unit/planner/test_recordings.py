"""Predictions against what four H200 did: fitted to the runs on two GPUs, or on one, the planner predicts the others and ranks them correctly.

The bounds are those that docs/planning.md promises; a model that is made wrong in one number breaks them.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from pd_planner.calibrate.errors import Compared, capacities, compare, held_out_of
from pd_planner.calibrate.gauss_newton import fit
from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.step_numbers import StepNumbers
from pd_planner.des import deployment
from pd_planner.des.model import SendCosts
from pd_planner.profile.analytic import analytic
from pd_planner.profile.datasheets import board_of
from pd_planner.profile.numbers import changed, number
from pd_planner.profile.shape import read_shape
from pd_simulator.profile import Launch, Profile, load_profile
from pd_simulator.steps.engines import Engines

ROOT = Path(__file__).parents[3]
BENCHMARK = ROOT / "benchmarks" / "planner"
TTFT_P50, TTFT_P99, TPOT_P50, TPOT_P99, JOULES = range(5)


def _loaded(name: str, folder: Path = BENCHMARK) -> ModuleType:
    """A module of the benchmark or of the docs; the benchmark's modules are imported from their folder."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


condensed = _loaded("condensed")
accuracy = _loaded("accuracy")


@pytest.fixture(scope="module", name="runs")
def _runs() -> list[Measured]:
    return condensed.runs()  # type: ignore[no-any-return]


@pytest.fixture(scope="module", name="four")
def _four(runs: list[Measured]) -> list[Measured]:
    return [run for run in runs if run.gpus == 4]


def predicted(profile: Profile, runs: list[Measured]) -> list[Compared]:
    return [compare(profile, run) for run in runs]


def broken(compared: list[Compared]) -> list[str]:
    """Which of the promises do not hold."""
    found = accuracy.carried(compared)
    off = np.array([abs(each.error) for each in found if "1P3D" not in each.label])
    pairs, ordered, _ = accuracy.ordered(found)
    errors = accuracy.errors(compared)
    asked = [row for label, row in errors.items() if "1P3D" not in label]
    worst = [max(row[metric] for row in asked) for metric in range(5)]
    promises = {
        "capacity within 5% in the median": np.median(off) <= 0.05,
        "capacity within 10% for nine of ten": np.quantile(off, 0.9) <= 0.10,
        "TTFT p50 within 15%": worst[TTFT_P50] <= 0.15,
        "TTFT p99 within 15%": worst[TTFT_P99] <= 0.15,
        "TPOT p50 within 5%": worst[TPOT_P50] <= 0.05,
        "TPOT p99 within 5%": worst[TPOT_P99] <= 0.05,
        "J/token within 5%": worst[JOULES] <= 0.05,
        "every pair in order": ordered == pairs >= 18,
        "1P3D's latencies": max(errors["disagg 1P3D"]) <= 0.15,
        "1P3D's capacity within 30%": max(abs(each.error) for each in found) <= 0.30,
        "2P2D's TTFT p99 within 5%": errors["disagg 2P2D"][TTFT_P99] <= 0.05,
    }
    return [promise for promise, holds in promises.items() if not holds]


def test_a_fit_to_two_gpus_predicts_four(four: list[Measured]) -> None:
    assert broken(predicted(condensed.two_gpus(), four)) == []


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("prefill.per_token_ms", 1.25),
        ("prefill.per_token_ms", 0.8),
        ("prefill.per_pair_ns", 0.0),
        ("combined.base_ms", 1.25),
        ("combined.per_context_token_ms", 1.6),
        ("decode.base_ms", 0.8),
        ("decode.per_context_token_ms", 1.6),
        ("mixed.overlap_ms", 0.0),
        ("mixed.overlap_ms", 2.0),
        ("mixed.prefill_token_share", 0.8),
        ("api_ms", 0.0),
        ("handoff.P2pNcclConnector.send_floor_per_step_ms", 0.0),
        ("handoff.P2pNcclConnector.send_floor_per_step_ms", 2.0),
        ("handoff.P2pNcclConnector.send_floor_ms", 0.8),
        ("handoff.P2pNcclConnector.send_floor_per_peer_ms", 0.0),
        ("handoff.P2pNcclConnector.send_tail_ms", 0.0),
        ("handoff.P2pNcclConnector.receive_ms", 0.6),
        ("handoff.P2pNcclConnector.receive_per_token_ms", 0.0),
        ("power.prefill.prefill_w", 0.8),
        ("power.decode.decode_w", 1.25),
        ("power.combined.decode_w", 0.8),
    ],
)
def test_a_number_that_is_wrong_is_noticed(name: str, factor: float, four: list[Measured]) -> None:
    right = condensed.two_gpus()

    assert broken(predicted(changed(right, {name: factor * number(right, name)}), four)) != []


def test_a_listener_that_takes_all_at_once_is_noticed(four: list[Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_is = deployment._send_costs

    def at_once(profile: Profile, engines: Engines) -> SendCosts:
        return as_it_is(profile, engines)._replace(receive=0.0, receive_token=0.0)

    monkeypatch.setattr(deployment, "_send_costs", at_once)

    assert broken(predicted(condensed.two_gpus(), four)) != []


def test_another_routing_than_the_proxys_is_noticed(four: list[Measured]) -> None:
    to_one = [replace(run, route=deployment.Route(run.route.prefill, np.zeros_like(run.route.other))) for run in four]

    assert broken(predicted(condensed.two_gpus(), to_one)) != []


def test_of_all_recordings_every_pair_of_deployments_is_in_order(runs: list[Measured]) -> None:
    shipped = accuracy.with_launches_of_the_runs(load_profile("h200-llama3-8b"))

    pairs, ordered, _ = accuracy.ordered(accuracy.carried(predicted(shipped, runs)))

    assert ordered == pairs == 62


def test_one_gpu_of_a_later_vllm_orders_them_but_for_two_and_four_plain_engines(runs: list[Measured]) -> None:
    found = accuracy.carried(predicted(condensed.one_gpu(), runs))
    of_one_size = [each for each in found if each.label != "2 combined"]

    assert accuracy.ordered(found)[:2] == (62, 61)
    pairs, ordered, _ = accuracy.ordered(of_one_size)
    assert ordered == pairs


def on_a_pair(profile: Profile) -> tuple[list[float], float]:
    """The errors of plain engines at 512 → 64 tokens, which no fit has seen, and that of their capacity."""
    own = [run for run in condensed.runs_of_a_pair() if not run.part and run.load.prompt[0] == 512]
    compared = predicted(profile, own)
    [(measured, simulated)] = capacities(compared)
    return [float(np.median(np.abs(each))) for each in np.array([each.errors for each in compared]).T], abs(
        simulated / measured - 1
    )


@pytest.mark.parametrize("profile", [load_profile("h200-llama3-8b"), condensed.one_gpu()])
def test_plain_engines_with_short_prompts_are_predicted_by_another_hosts_launches(profile: Profile) -> None:
    errors, capacity = on_a_pair(profile)

    assert capacity < 0.15
    assert max(errors) < 0.20

    errors, capacity = on_a_pair(msgspec.structs.replace(profile, launch=Launch()))
    assert capacity > 1.0
    assert max(errors) > 0.40


def test_rates_at_which_nobody_falls_short_say_nothing_of_how_well_capacity_is_predicted() -> None:
    calm = [run for run in condensed.runs_on_one_gpu() if run.load.prompt[0] == 8192]
    compared = predicted(condensed.one_gpu(), calm)

    assert compared
    assert all(each.within is not None and min(each.within) > 0.9 for each in compared)
    assert held_out_of(compared).capacity is None


def test_the_shipped_profile_of_qwen_is_nearer_to_its_runs_than_the_data_sheet() -> None:
    _loaded("p2p")
    records = _loaded("records")
    board = board_of("H200")
    assert board is not None
    measured, computed = load_profile("h200-qwen3-4b"), analytic(read_shape("qwen3-4b"), board)
    runs = records.runs(records.QWEN_RESULTS)

    near, far = (held_out_of([compare(profile, run) for run in runs]) for profile in (measured, computed))

    assert measured.provenance is not None
    assert (measured.provenance.kind, measured.provenance.runs) == ("measured", len(runs))
    for name, most in (("ttft_p50", 0.05), ("tpot_p50", 0.05), ("joules_per_token", 0.03)):
        assert getattr(near, name) < most < getattr(far, name)


def test_a_fit_that_starts_far_off_finds_the_same_numbers(runs: list[Measured]) -> None:
    names = ["handoff.NixlConnector.receive_ms", "handoff.NixlConnector.wait_ms"]
    right, nixl = condensed.two_gpus(), [run for run in runs if "NIXL" in run.label]
    afar = changed(right, {names[0]: 1.5 * number(right, names[0]), names[1]: 0.6 * number(right, names[1])})

    found = fit(afar, StepNumbers(), nixl, names).as_dict()

    assert found[names[0]] == pytest.approx(number(right, names[0]), rel=0.1)


@pytest.mark.parametrize("begun_at", [5.0, 20.0])
def test_a_lone_prompt_over_p2p_nccl_takes_as_long_wherever_the_fit_starts(
    begun_at: float, runs: list[Measured]
) -> None:
    keys = ("send_floor_per_step_ms", "send_floor_ms", "send_tail_ms")
    names = [f"handoff.P2pNcclConnector.{key}" for key in keys]
    right, one = condensed.two_gpus(), [run for run in runs if run.label == "disagg 1P1D"]
    afar = changed(right, dict(zip(names, (begun_at, 15.0, 9.0), strict=True)))

    step, request, tail = (fit(afar, StepNumbers(), one, names).as_dict()[name] for name in names)

    expected = [number(right, name) for name in names]
    assert step + request == pytest.approx(expected[0] + expected[1], rel=0.1)
    assert tail == pytest.approx(expected[2], rel=0.1)


def test_p2ps_numbers_in_the_shipped_profile_are_those_of_its_data() -> None:
    shipped = load_profile("h200-llama3-8b")
    made = _loaded("p2p").with_p2p(shipped)

    for name in ("wait_ms", "wait_per_token_ms", "at_once_ms", "at_once_per_token_ms", "first_token_ms"):
        place = f"handoff.P2pConnector.{name}"
        assert number(shipped, place) == pytest.approx(number(made, place), rel=1e-3), (
            "python benchmarks/planner profile"
        )
    assert made.provenance == shipped.provenance
    errors = [held_out for label, held_out in shipped.provenance.held_out.items() if "P2pC" in label]  # type: ignore[union-attr]
    assert len(errors) == 2
    assert all(each.ttft_p50 < 0.1 and each.ttft_p99 < 0.18 and each.tpot_p99 < 0.05 for each in errors)  # type: ignore[operator]


def test_the_pages_have_the_tables_that_the_records_give() -> None:
    write_planning = _loaded("write_planning", ROOT / "docs")
    english = list(accuracy.tables())

    for name, lines in (("planning.md", english), ("planning.zh.md", write_planning.chinese(english))):
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert "\n".join(lines) in page, "run python docs/write_planning.py"
