"""The fake's numbers are those of the capture of a real H200 beside them."""

import itertools
import json
import statistics
from pathlib import Path

import pytest
import support.monitor
from support.monitor import H200, recorded

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
    assert 0 in {round(number) for number in updates}  # in which the counter stood still


def test_the_boards_idle_power_is_the_parameters(capture: bytes) -> None:
    _, samples = recorded(capture)
    idle = [sample.power_w for sample in samples if sample.throttle_reasons == 1 and sample.power_w is not None]

    assert statistics.median(idle) == pytest.approx(H200.idle_w, rel=0.02)
