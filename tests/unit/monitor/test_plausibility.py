"""Bounds of readings, with the real board's recordings as the measure of what must pass."""

import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest
import support.monitor

from pd_contracts.records import GpuHeader, GpuSample
from pd_monitor.plausibility import Plausibility

SUPPORT = Path(support.monitor.__file__).parent


def doubts(*samples: GpuSample, limit_w: float | None = 700.0) -> list[dict[str, str]]:
    board = Plausibility()
    return [dict(board.doubts(sample, limit_w)) for sample in samples]


def at(t: float, **readings: Any) -> GpuSample:
    return GpuSample(t=t, index=0, **readings)


@pytest.mark.parametrize(
    ("readings", "limit_w", "field"),
    [
        pytest.param({"power_w": 0.0}, 700.0, "power_w", id="0 W"),
        pytest.param({"power_average_w": 0.0}, 700.0, "power_average_w", id="0 W in the mean"),
        pytest.param({"power_w": -1.0}, 700.0, "power_w", id="less than nothing"),
        pytest.param({"power_w": 1401.0}, 700.0, "power_w", id="beyond twice the limit"),
        pytest.param({"power_average_w": 876.0}, 700.0, "power_average_w", id="a mean beyond the limit"),
        pytest.param({"power_w": 6001.0}, None, "power_w", id="more than any board, whose limit is unknown"),
    ],
)
def test_a_power_that_no_board_draws(readings: dict[str, float], limit_w: float | None, field: str) -> None:
    (found,) = doubts(at(0.0, **readings), limit_w=limit_w)

    assert set(found) == {field}


def test_a_counter_may_advance_by_an_update_between_two_readings_but_not_by_more() -> None:
    # 1.5 × 700 W × (0.02 s + 0.2 s) = 231 J
    assert doubts(at(0.0, energy_mj=0), at(0.02, energy_mj=230e3)) == [{}, {}]
    assert "energy_mj" in doubts(at(0.0, energy_mj=0), at(0.02, energy_mj=232e3))[1]


def test_a_counter_that_stands_still_is_doubted_from_two_seconds_on_and_believed_again() -> None:
    still = [at(t / 2, energy_mj=5.0, power_w=80.0) for t in range(6)]

    found = doubts(*still, at(3.0, energy_mj=6.0, power_w=80.0))

    assert [bool(each) for each in found] == [False, False, False, False, True, True, False]


def test_a_jump_is_doubted_once() -> None:
    found = doubts(at(0.0, energy_mj=0), at(0.1, energy_mj=5e9), at(0.2, energy_mj=5e9 + 60e3))

    assert [bool(each) for each in found] == [False, True, False]


@pytest.mark.parametrize("name", ["h200_capture.jsonl", "h200_idle_20ms.jsonl.gz", "h200_load_20ms.jsonl.gz"])
def test_nothing_that_a_real_board_told_is_doubted(name: str) -> None:
    opened = gzip.open if name.endswith(".gz") else open
    with opened(SUPPORT / name, "rb") as file:
        header, *lines = file.read().splitlines()
    limits = {gpu.index: gpu.power_limit_w for gpu in msgspec.json.decode(header, type=GpuHeader).gpus}
    boards: dict[int, Plausibility] = {}

    found = [
        doubt
        for sample in (msgspec.json.decode(line, type=GpuSample) for line in lines)
        if (doubt := boards.setdefault(sample.index, Plausibility()).doubts(sample, limits[sample.index]))
    ]

    assert found == []
