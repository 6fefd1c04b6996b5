"""The fake's numbers are those of the capture of a real H200 beside them."""

import gzip
import itertools
import json
import statistics
from pathlib import Path

import pytest
import support.monitor
from support.board_fit import fit, period
from support.monitor import H200, recorded

from pd_contracts.records import GpuSample

FOLDER = Path(support.monitor.__file__).parent


@pytest.fixture(name="capture", scope="module")
def _capture() -> bytes:
    return (FOLDER / "h200_capture.jsonl").read_bytes()


def test_the_capture_is_of_the_board_and_driver_that_the_parameters_name(capture: bytes) -> None:
    header, samples = recorded(capture)
    named = json.loads((FOLDER / "h200.json").read_text())

    assert (header.gpus[0].name, header.gpus[0].driver) == (named["board"], named["driver"])
    assert not header.simulated
    assert {sample.memory_clock_mhz for sample in samples} == {H200.memory_clock_mhz}
    assert header.gpus[0].power_limit_w == H200.power_limit_w


def test_the_boards_counter_moves_by_whole_updates(capture: bytes) -> None:
    """However long an interval is, the counter shows a multiple of the update's energy, and nothing within one."""
    _, samples = recorded(capture)
    updates = [
        (b.energy_mj - a.energy_mj) / 1e3 / b.power_average_w / H200.energy_update_s
        for a, b in itertools.pairwise(samples)
        if a.energy_mj is not None and b.energy_mj is not None and b.power_average_w
        if a.throttle_reasons == b.throttle_reasons == 1  # at idle the average is the power
    ]
    intervals = [b.t - a.t for a, b in itertools.pairwise(samples)]

    assert all(abs(number - round(number)) < 0.05 for number in updates)
    assert min(intervals) < 0.03  # one that is a fraction of an update,
    assert 0 in {round(number) for number in updates}  # in which the counter did not move


def test_the_boards_idle_power_is_the_parameters(capture: bytes) -> None:
    _, samples = recorded(capture)
    idle = [sample.power_w for sample in samples if sample.throttle_reasons == 1 and sample.power_w is not None]

    assert statistics.median(idle) == pytest.approx(H200.idle_w, rel=0.02)


# --- at 20 ms: when a board reads itself, and what it looks at -----------------------------------------------------------------


def fast(name: str) -> list[list[GpuSample]]:
    """The samples of each of the two boards."""
    header, samples = recorded(gzip.decompress((FOLDER / f"h200_{name}_20ms.jsonl.gz").read_bytes()))
    assert (header.interval_s, header.simulated, header.gpus[0].name) == (0.02, False, "NVIDIA H200")
    return [[sample for sample in samples if sample.index == index] for index in (0, 1)]


@pytest.mark.parametrize("board", [0, 1])
def test_under_a_square_wave_the_board_is_what_the_parameters_say(board: int) -> None:
    found = fit(fast("load")[board])

    assert found.energy_period_s == pytest.approx(H200.energy_update_s, abs=0.001)
    assert found.power_period_s == pytest.approx(H200.energy_update_s, abs=0.001)
    assert found.power_offset_s == pytest.approx(H200.power_offset_s, abs=0.01)
    assert found.average_window_s == pytest.approx(H200.average_window_s, abs=0.05)
    assert found.average_error < 0.015
    assert found.instant_least_s <= H200.instant_window_s <= found.instant_most_s
    assert found.instant_most_s < 0.08  # the instant power never looks at all of an update
    assert found.busy_w == pytest.approx(H200.busy_w, rel=0.01)


def test_one_board_bounds_the_instant_powers_window_closely() -> None:
    """The bound is as close as the wave's edges happened to come before an update of the power."""
    assert min(fit(samples).instant_most_s for samples in fast("load")) < 0.035


@pytest.mark.parametrize("board", [0, 1])
def test_idle_the_counter_moves_every_update_and_the_power_is_the_parameters(board: int) -> None:
    samples = fast("idle")[board]

    assert period(samples, lambda sample: sample.energy_mj) == pytest.approx(H200.energy_update_s, abs=0.001)
    powers = [sample.power_w for sample in samples if sample.power_w is not None]
    assert statistics.median(powers) == pytest.approx(H200.idle_w, rel=0.02)
    assert {sample.sm_clock_mhz for sample in samples} == {H200.idle_sm_clock_mhz}
