"""The ROCm SMI back end against a C library that keeps to rocm_smi.h; no such hardware was at hand."""

import time
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from support.monitor import build_library, monitor_process, pick

from pd_contracts.records import GpuSample
from pd_monitor.backends import choose
from pd_monitor.backends.rocm import Rocm, RocmError
from pd_monitor.reading import WHOLE_GPU
from pd_monitor.settings import Settings

Reader = Callable[..., Rocm]


@pytest.fixture(name="library", scope="module")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("rocm"), "fake_rocm.c", "libfake_rocm_smi64.so")


@pytest.fixture(name="reader")
def _reader(library: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    def make(**environment: str) -> Rocm:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Rocm((str(library),))

    return make


def check(sample: GpuSample, watts: float, temperature: float) -> None:
    assert (sample.power_w, sample.power_average_w) == (watts, watts - 1)
    assert (sample.sm_clock_mhz, sample.memory_clock_mhz) == (2100, 1300)
    assert (sample.utilization, sample.memory_utilization) == (0.8, 0.3)
    assert (sample.temperature_c, sample.memory_used_bytes) == (temperature, 100 << 30)


@pytest.mark.parametrize("layout", ["5", "6"])
def test_every_reading_is_in_our_units_with_either_layout_of_the_frequencies(reader: Reader, layout: str) -> None:
    reading = reader(FAKE_ROCM_FREQUENCIES=layout).sample()

    assert [(gpu.name, gpu.uuid, gpu.driver) for gpu in reading.gpus] == [
        ("Fake MI300X", "000000000000abc0", "6.8.5-fake"),
        ("Fake MI300X", "000000000000abc1", "6.8.5-fake"),
    ]
    assert [(gpu.power_limit_w, gpu.memory_bytes) for gpu in reading.gpus] == [(750.0, 192 << 30)] * 2
    check(reading.samples[0], 300.0, 61.0)
    check(reading.samples[1], 400.0, 52.0)  # without a junction sensor, the edge's


def sampled(rocm: Rocm) -> GpuSample:
    """One board's sample after the gate has seen a window, which is made short."""
    for board in rocm._boards:
        board.gate.window_s = 0.4
    rocm.sample()
    for _ in range(5):
        time.sleep(0.1)
        last = rocm.sample()
    return last.samples[0]


def test_a_counter_that_agrees_with_the_power_is_believed(reader: Reader) -> None:
    rocm = reader()
    first = rocm.sample().samples[0]
    one = sampled(rocm)
    time.sleep(0.2)
    two = rocm.sample().samples[0]

    assert first.errors == {"energy_mj": "not yet compared with the power"}
    assert one.energy_mj is not None
    assert two.energy_mj is not None
    assert (two.energy_mj - one.energy_mj) / 1e3 == pytest.approx(300 * (two.t - one.t), rel=0.05)


def test_a_counter_at_the_wrong_rate_is_an_error_and_no_energy(reader: Reader) -> None:
    sample = sampled(reader(FAKE_ROCM_ENERGY_PERCENT="50"))

    assert sample.energy_mj is None
    assert "the counter says" in sample.errors["energy_mj"]
    assert sample.power_w == 300.0


def test_a_call_that_a_board_does_not_know_is_absent_and_named(reader: Reader) -> None:
    sample = reader(FAKE_ROCM_WITHOUT="rsmi_dev_current_socket_power_get").sample().samples[0]

    assert sample.power_w is None
    assert sample.power_average_w == 299.0
    assert sample.errors["power_w"] == "rsmi_dev_current_socket_power_get: status 2"


def test_a_board_that_tells_nothing_is_lost(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    rocm = reader()
    monkeypatch.setenv("FAKE_ROCM_WITHOUT", "all")

    assert set(rocm.sample().samples[0].errors) == {WHOLE_GPU}


def test_without_the_library_or_with_one_that_does_not_start_there_is_a_reason(reader: Reader) -> None:
    with pytest.raises(RocmError, match="no librocm_smi64"):
        Rocm(("/nowhere/librocm_smi64.so",))
    with pytest.raises(RocmError, match="rsmi_init: status 8"):
        reader(FAKE_ROCM_INIT="8")


async def test_auto_takes_it_where_nvml_finds_nothing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr("pynvml.nvmlInit", no_driver)

    backend = await choose(Settings(rocm_smi_library=str(library)))
    reading = await backend.sample()
    await backend.close()

    assert "rocm-smi" in backend.name
    assert "untested" in backend.name
    assert len(reading.samples) == 2


def test_the_monitor_says_at_its_start_what_it_reads_through(library: Path) -> None:
    with monitor_process(MONITOR_BACKEND="rocm", ROCM_SMI_LIBRARY=str(library)) as monitor:
        monitor.wait_ready()
        page = monitor.page()

    assert pick(page, "pd_gpu_power_watts", kind="instant") == {"0": 300.0, "1": 400.0}
    assert pick(page, "pd_exporter_info", backend="rocm-smi (untested on hardware)") == {"": 1.0}
