import json
from pathlib import Path
from typing import Any

import pytest

from pd_contracts.names import Role
from pd_contracts.records import Clock, GpuHeader, GpuInfo, GpuSample, encode_line
from pd_monitor.files import role_file, write_role_files

HEADER = GpuHeader(
    clock=Clock(wall=1000.0, monotonic=10.0),
    backend="nvml",
    simulated=False,
    interval_s=0.1,
    gpus=[GpuInfo(index=0, name="a", role=Role.PREFILL), GpuInfo(index=1, name="b", role=Role.DECODE)],
)


def sample(t: float, index: int, energy_mj: float | None = None) -> GpuSample:
    role = Role.PREFILL if index == 0 else Role.DECODE
    return GpuSample(t=t, index=index, role=role, power_w=100.0 + t, energy_mj=energy_mj)


def lines(*samples: GpuSample) -> list[bytes]:
    return [encode_line(HEADER), *map(encode_line, samples)]


def made(role: Role, *samples: GpuSample) -> Any:
    return json.loads(b"".join(role_file(lines(*samples), role)))


def test_a_file_has_the_samples_of_its_role_on_the_walls_clock() -> None:
    file = made(Role.PREFILL, sample(10.5, 0, 7000.0), sample(10.5, 1, 1.0), sample(11.5, 0, 9500.0))

    assert (file["role"], file["backend"], file["simulated"]) == ("prefill", "nvml", False)
    assert [gpu["name"] for gpu in file["gpus"]] == ["a"]
    assert [(one["timestamp"], one["t"], one["index"], one["power_w"]) for one in file["samples"]] == [
        (1000.5, 10.5, 0, 110.5),
        (1001.5, 11.5, 0, 111.5),
    ]


def test_energy_is_the_counters_difference() -> None:
    file = made(Role.PREFILL, sample(10.5, 0, 7000.0), sample(11.0, 0), sample(11.5, 0, 9500.0))

    assert (file["energy_j"], file["energy_j_by_gpu"]) == (2.5, {"0": 2.5})


def test_a_counter_that_went_back_makes_the_energy_unknown_and_not_negative() -> None:
    assert made(Role.PREFILL, sample(10.5, 0, 7000.0), sample(11.5, 0, 10.0))["energy_j"] is None


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        pytest.param([7000.0, 8000.0, None, None, None, None], "could not be read for 0.4 s", id="readings that stop"),
        pytest.param([None, None, None, None, 8000.0, 9000.0], "could not be read for 0.4 s", id="that begin late"),
        pytest.param([7000.0, 8000.0, 5e9, 5e9, 5e9, 5e9], "jumped by", id="a jump"),
        pytest.param([7000.0, 8000.0, 9000.0, 1.0, 2.0, 3.0], "went backwards", id="a counter that began anew"),
        pytest.param([7000.0] * 30, "has not moved", id="a counter that does not move"),
        pytest.param([None] * 6, "tells no energy", id="no counter"),
    ],
)
def test_an_energy_that_is_not_all_of_it_is_unknown_with_the_reason(readings: list[float | None], reason: str) -> None:
    samples = [sample(10 + number / 10, 0, reading) for number, reading in enumerate(readings)]

    file = made(Role.PREFILL, *samples)

    assert file["energy_j"] is None
    assert reason in file["energy_unknown"]["0"]


def test_a_role_without_samples_is_an_empty_list() -> None:
    file = made(Role.COMBINED, sample(10.5, 0, 7000.0))

    assert (file["samples"], file["energy_j"]) == ([], None)


def test_many_samples_come_whole() -> None:
    file = made(Role.DECODE, *(sample(10 + number / 10, 1, float(number)) for number in range(1234)))

    assert len(file["samples"]) == 1234


def test_a_recording_becomes_a_file_for_each_of_its_roles(tmp_path: Path) -> None:
    recording = tmp_path / "gpu.jsonl"
    recording.write_bytes(b"".join(lines(sample(10.5, 0), sample(10.5, 1))) + b'{"t": 11.0, "ind')  # a kill's last line

    written = write_role_files(recording, tmp_path / "out")

    assert [path.name for path in written] == ["decode_gpu_data.json", "prefill_gpu_data.json"]
    assert all(len(json.loads(path.read_text())["samples"]) == 1 for path in written)
