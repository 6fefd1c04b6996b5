"""Calibration finds the true numbers of simulated runs, keeps those that the runs do not show, and refuses impossible ones."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.planning import H200, poisson, write_run

from pd_contracts.names import Connector
from pd_contracts.records import MANIFEST, Manifest, read_json, write_json
from pd_planner.calibrate import gauss_newton
from pd_planner.calibrate.calibration import Calibration, calibrate, fitted, folds
from pd_planner.calibrate.gauss_newton import free_numbers
from pd_planner.calibrate.launches import launch_of
from pd_planner.calibrate.measured import CalibrationError, Measured, Stream
from pd_planner.calibrate.runs import read
from pd_planner.calibrate.step_numbers import step_numbers
from pd_planner.calibrate.steps import steps_of, windows_of
from pd_planner.main import main
from pd_planner.profile.analytic import analytic
from pd_planner.profile.datasheets import board_of
from pd_planner.profile.guards import remarks
from pd_planner.profile.numbers import changed, number
from pd_planner.profile.shape import read_shape
from pd_planner.traffic.load import Load
from pd_simulator.profile import Launch, Profile, load_profile
from pd_simulator.steps.engines import Engines, Order

KV = 152_000
# Unlike the shipped profile in every number that is looked for.
TRUTH = changed(
    H200,
    {
        "api_ms": 3.0,
        "prefill.per_token_ms": 0.030,
        "prefill.base_ms": 2.0,
        "decode.base_ms": 6.0,
        "decode.per_context_token_ms": 40e-6,
        "combined.base_ms": 5.5,
        "mixed.overlap_ms": 4.0,
        "mixed.prefill_token_share": 0.8,
        "handoff.NixlConnector.receive_ms": 5.0,
        "handoff.NixlConnector.wait_ms": 20.0,
        "power.combined.decode_w": 300.0,
        "power.combined.prefill_w": 500.0,
    },
)


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    folder = tmp_path_factory.mktemp("runs")
    deployments = {"2 combined": Engines(0, 2, None, KV), "1P1D NIXL": Engines(1, 1, Connector.NIXL, KV)}
    for label, engines in deployments.items():
        for prompt, output, rates in ((512, 64, (6, 14, 24)), (2048, 128, (2, 5, 7))):
            for rate in rates:
                write_run(
                    folder / f"{label}-{prompt}-{rate}", TRUTH, engines, poisson(2 * rate, 20, prompt, output), label
                )
    runs, problems = read([folder], kv_tokens=KV)
    assert problems == []
    assert len(runs) == 12
    return runs


@pytest.fixture(scope="module", name="found")
def _found(runs: Sequence[Measured]) -> Calibration:
    return calibrate(H200, runs)


def test_the_truth_is_found(found: Calibration) -> None:
    for name, within in {
        "prefill.per_token_ms": 0.03,
        "decode.base_ms": 0.02,
        "decode.per_context_token_ms": 0.05,
        "combined.base_ms": 0.02,
        "power.combined.decode_w": 0.05,
        "power.combined.prefill_w": 0.05,
        "power.combined.idle_w": 0.02,
    }.items():
        assert number(found.profile, name) == pytest.approx(number(TRUTH, name), rel=within), name
    # Of a request that comes alone, the two together are seen.
    alone = [
        sum(number(each, f"handoff.NixlConnector.{key}_ms") for key in ("wait", "receive"))
        for each in (found.profile, TRUTH)
    ]
    assert alone[0] == pytest.approx(alone[1], rel=0.1)
    for label, held_out in (found.profile.provenance.held_out if found.profile.provenance else {}).items():
        assert held_out.runs == 6
        errors = (held_out.ttft_p50, held_out.ttft_p99, held_out.tpot_p50, held_out.tpot_p99, held_out.joules_per_token)
        assert max(error or 0.0 for error in errors) < 0.06, label


def test_what_the_runs_do_not_tell_stays(found: Calibration) -> None:
    assert found.profile.batched == H200.batched
    assert found.profile.handoff[Connector.P2P_NCCL] == H200.handoff[Connector.P2P_NCCL]


@pytest.mark.parametrize("order", [Order.AT_ONCE, Order.HAND_OFF])
def test_p2ps_order_is_read_off_the_runs_and_its_numbers_are_found(order: Order, tmp_path: Path) -> None:
    name = f"handoff.P2pConnector.{'at_once_ms' if order is Order.AT_ONCE else 'first_token_ms'}"
    truth = changed(H200, {name: 1.6 * number(H200, name), "decode.base_ms": 6.0})
    engines = Engines(1, 1, Connector.P2P, KV, order=order)
    for prompt, output, rate in ((512, 64, 10), (512, 64, 24), (2048, 128, 4), (2048, 128, 7)):
        write_run(
            tmp_path / f"{prompt}-{rate}", truth, engines, poisson(2 * rate, 20, prompt, output), "1P1D P2pConnector"
        )

    runs, problems = read([tmp_path], kv_tokens=KV)
    found = calibrate(H200, runs).profile

    assert problems == []
    assert {run.engines.order for run in runs} == {order}
    assert number(found, name) == pytest.approx(number(truth, name), rel=0.15)
    assert found.decode.base_ms == pytest.approx(6.0, rel=0.02)


NCCL = "handoff.P2pNcclConnector"
HAND_SHAKES = {f"{NCCL}.send_floor_per_step_ms": 9.0, f"{NCCL}.send_floor_ms": 14.0, f"{NCCL}.send_tail_ms": 5.0}


def nccl_runs(truth: Profile, prefills: int, folder: Path) -> list[Measured]:
    """Runs of one or several senders to one receiver."""
    for prompt, output, rates in ((512, 64, (4, 12, 22)), (2048, 128, (3, 7, 12))):
        for rate in rates:
            load = poisson(min(prefills, 2) * rate, 10, prompt, output)
            engines = Engines(prefills, 1, Connector.P2P_NCCL, KV)
            write_run(folder / f"{prompt}-{rate}", truth, engines, load, f"{prefills}P1D")
    return read([folder], kv_tokens=KV)[0]


def test_a_steps_own_hand_shake_is_found_though_the_start_has_none(tmp_path: Path) -> None:
    start = changed(H200, {**HAND_SHAKES, f"{NCCL}.send_floor_per_step_ms": 0.0})
    runs = nccl_runs(changed(H200, HAND_SHAKES), 1, tmp_path)

    found = fitted(start, runs)[0].handoff[Connector.P2P_NCCL]

    assert found.send_floor_per_step_ms + found.send_floor_ms == pytest.approx(9.0 + 14.0, rel=0.05)
    assert found.send_floor_ms == pytest.approx(14.0, rel=0.1)


@pytest.mark.parametrize(("prefills", "of_the_runs"), [(1, False), (3, True)])
def test_what_a_receiver_takes_is_found_only_where_several_senders_wait_for_it(
    prefills: int, of_the_runs: bool, tmp_path: Path
) -> None:
    """A single sender waits for its receiver, too, but cannot be told from one whose own hand-shakes take as long."""
    name = f"{NCCL}.receive_ms"
    start, truth = (changed(H200, {**HAND_SHAKES, name: receive_ms}) for receive_ms in (18.0, 24.0))
    runs = nccl_runs(truth, prefills, tmp_path)

    found, estimate, _ = fitted(start, runs)

    expected = number(truth if of_the_runs else start, name)
    assert number(found, name) == pytest.approx(expected, rel=0.05 if of_the_runs else 1e-9)
    known_to = dict(zip(estimate.names, np.sqrt(np.diag(estimate.covariance)), strict=True))[name]
    assert (known_to < 0.1) == of_the_runs  # else the draws of a plan have the whole doubt of the start


def test_every_connector_has_numbers_to_be_found() -> None:
    assert {f"handoff.{connector}" for connector in Connector} | {"batched"} == set(gauss_newton._HANDOFF)


def test_every_run_is_predicted_by_a_profile_that_did_not_see_it(runs: Sequence[Measured]) -> None:
    for seen, unseen in folds(runs):
        assert not {run.path for run in seen} & {run.path for run in unseen}
        assert len(seen) + len(unseen) == len(runs)
    predicted = [run.path for _, unseen in folds(runs) for run in unseen]
    assert sorted(predicted) == sorted(run.path for run in runs)


def test_one_length_of_prompts_tells_no_cost_per_token_of_handing_over(runs: Sequence[Measured]) -> None:
    short = [run for run in runs if run.load.prompt[0] == 512]

    assert "handoff.NixlConnector.receive_per_token_ms" in free_numbers(runs)
    assert not any("handoff" in name and "per_token" in name for name in free_numbers(short))


def test_prompts_beside_decodes_are_priced_from_plain_engines(found: Calibration) -> None:
    def added(profile: Profile, tokens: int) -> float:
        prompt, mixed = profile.prefill, profile.mixed
        return prompt.base_ms - mixed.overlap_ms + mixed.prefill_token_share * prompt.per_token_ms * tokens

    assert added(found.profile, 2048) == pytest.approx(added(TRUTH, 2048), rel=0.05)


def test_launches_are_read_off_the_stamps(runs: Sequence[Measured]) -> None:
    launch = step_numbers(H200, runs).launch

    assert launch is not None
    assert np.mean(launch.ms) == pytest.approx(np.mean(TRUTH.launch.ms), rel=0.08)
    assert launch.ms == sorted(launch.ms)


def test_engines_that_launch_at_no_cost_are_seen_too(tmp_path: Path) -> None:
    free = msgspec.structs.replace(TRUTH, launch=Launch())
    for rate in (6, 14):
        write_run(tmp_path / str(rate), free, Engines(0, 1, None, KV), poisson(rate, 20, 600, 64), "1 combined")

    runs, _ = read([tmp_path], kv_tokens=KV)

    assert launch_of(H200.launch, runs).ms == []


def test_too_few_steps_say_nothing_of_launches() -> None:
    assert launch_of(H200.launch, []) == H200.launch


def test_steps_are_seen_in_the_stamps() -> None:
    # Two streams: the second begins with the third step, whose tokens come 0.1 ms apart.
    first = Stream(10, 0.0, np.arange(6, dtype=np.float64) * 0.005)
    second = Stream(20, 0.0, np.arange(2, 6, dtype=np.float64) * 0.005 + 0.0001)

    steps = steps_of([first, second])

    assert steps.at.tolist() == pytest.approx([0, 0.005, 0.010, 0.015, 0.020, 0.025])
    assert steps.tokens.tolist() == [1, 1, 2, 2, 2, 2]
    assert steps.begun.tolist() == [1, 0, 1, 0, 0, 0]
    assert steps.ended.tolist() == [0, 0, 0, 0, 0, 2]
    assert steps.prompts.tolist() == [10, 0, 20, 0, 0, 0]
    assert steps.context.tolist() == [9, 10, 11 + 19, 12 + 20, 13 + 21, 14 + 22]


def test_an_idle_engine_makes_no_window() -> None:
    alone = [Stream(10, 0.0, begin + np.arange(12, dtype=np.float64) * 0.005) for begin in (0.0, 1.0, 2.0)]

    assert len(windows_of(steps_of(alone), plain=True).took_ms) == 0


def test_a_cost_below_the_data_sheet_is_refused() -> None:
    fast = changed(H200, {"decode.per_context_token_ms": 20e-6, "prefill.per_token_ms": 0.010})

    impossible = [remark.sentence for remark in remarks(fast) if remark.impossible]

    assert len(impossible) == 2
    assert "decode.per_context_token_ms: 20 ns, and NVIDIA H200's memory needs 27.3 ns" in impossible[1]


def test_a_cost_far_above_the_data_sheet_is_told() -> None:
    # What the shipped profile once said: more than the memory needs, and half of what the board has was believed to be lost.
    slow = changed(H200, {"decode.per_context_token_ms": 55.5e-6})

    assert [remark.sentence for remark in remarks(slow)] == [
        "decode.per_context_token_ms: 55.5 ns, and NVIDIA H200's memory needs 27.3 ns at full speed: that is 49% of the speed"
    ]
    assert remarks(H200) == []


def test_a_board_without_a_data_sheet_is_not_judged() -> None:
    assert remarks(load_profile("slow-exact")) == []


def test_calibration_refuses_what_physics_forbids(runs: Sequence[Measured]) -> None:
    board = board_of("L40S")
    assert board is not None
    slower_board = msgspec.structs.replace(analytic(read_shape("llama-3.1-8b"), board), mixed=H200.mixed)

    with pytest.raises(CalibrationError, match="no board is faster than its data sheet"):
        calibrate(slower_board, runs)


def test_runs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "one", TRUTH, Engines(0, 1, None, KV), Load.of([0.0], 100, 3), "one")

    runs, problems = read([tmp_path], kv_tokens=KV)

    assert runs == []
    assert problems == [f"{tmp_path / 'one'}: left out: fewer than two requests were served"]


def test_engines_that_serve_otherwise_than_plain_ones_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "routed"
    write_run(folder, TRUTH, Engines(0, 2, None, KV), poisson(4, 5, 64, 8), "2 combined")
    manifest = read_json(folder / MANIFEST, Manifest)
    both = [msgspec.structs.replace(engine, connector=Connector.P2P) for engine in manifest.deployment.engines]
    routed = msgspec.structs.replace(manifest.deployment, engines=both, settings={"ROUTING": "adaptive"})
    write_json(folder / MANIFEST, msgspec.structs.replace(manifest, deployment=routed))

    runs, problems = read([tmp_path], kv_tokens=KV)

    assert runs == []
    assert [problem.partition("left out: ")[2] for problem in problems] == [
        "ROUTING=adaptive: no profile is fitted to it (pd-plan check simulates it)"
    ]


def test_the_command_writes_a_profile_that_simulator_and_planner_read(
    runs: Sequence[Measured], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "mine.toml", tmp_path / "mine.md"

    status = main(
        ["calibrate", str(runs[0].path.parent), "--kv-tokens", str(KV), "--out", str(out), "--report", str(report)]
    )

    assert status == 0
    profile = load_profile(str(out))
    assert profile.decode.base_ms == pytest.approx(6.0, rel=0.02)
    assert profile.spread is not None
    assert profile.provenance is not None
    assert (profile.provenance.runs, profile.provenance.kind) == (12, "measured")
    assert "| 1P1D NIXL | 512 → 64 |" in report.read_text()
    assert "| median error, held out | runs |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x.toml", "--profile", "h100"], "no profile 'h100': expected one of"),
        (["--out", "x.json"], "--out x.json: the name of a profile must end in .toml"),
        (["--out", "x.toml", "--model", "llama-3.1-8b"], "--model needs --gpu, one of H200"),
        (["--out", "x.toml", "--gpu", "H200"], "--gpu needs --model"),
        (["--out", "x.toml", "--model", "llama-3.1-8b", "--gpu", "RTX 9"], "--gpu RTX 9: expected one of H200"),
        (
            ["--out", "x.toml", "--model", "none.json", "--gpu", "H200"],
            "no such file; known without one: llama-3.1-70b",
        ),
        (["--out", "x.toml", "--model", "llama-3.1-70b", "--gpu", "L40S"], "--tensor-parallel 4 or more"),
        (["--out", "x.toml"], "0 usable runs: too few"),
    ],
)
def test_what_the_command_cannot_do_is_said(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err
