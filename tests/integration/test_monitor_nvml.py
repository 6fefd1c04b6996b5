"""`pd-monitor` as a process over a C `libnvidia-ml.so.1` whose true power is known, through the real pynvml."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.board_fit import fit
from support.monitor import H200, FakeTruth, FaultFile, MonitorProcess, build_fake_nvml, monitor_process, pick

from pd_contracts.names import Role
from pd_contracts.records import GpuSample
from pd_monitor.catalog import SERIES

UPDATE_S = H200.energy_update_s  # how often the fake's readings change, as real boards' do
OFFSET_S = H200.power_offset_s
WHOLE = "gpu"


class FakeHost:
    """The folder that the library is found in, and the file that its faults are read from."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.faults = FaultFile(folder / "faults")
        self.fail = self.faults.fail

    @contextlib.contextmanager
    def monitor(self, **environment: str) -> Iterator[MonitorProcess]:
        found = {"LD_LIBRARY_PATH": str(self.library.parent), "FAKE_NVML_CONTROL": str(self.faults.path)}
        with monitor_process(**{**found, "MONITOR_INTERVAL_S": "0.1", "NVML_RETRY_S": "0.2", **environment}) as process:
            process.wait_healthy()
            yield process


@pytest.fixture(name="library", scope="module")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(name="host")
def _host(library: Path, tmp_path: Path) -> FakeHost:
    return FakeHost(library, tmp_path)


def instant(process: MonitorProcess) -> dict[str, float]:
    return pick(process.page(), "pd_gpu_power_watts", kind="instant")


def readiness(process: MonitorProcess) -> tuple[int, str]:
    status, body = process.request("GET", "/readyz")
    return status, json.loads(body)["reason"]


def close_to_an_update(
    value: float | None, truth: Callable[[float], float], t: float, tolerance: float, offset_s: float = 0.0
) -> bool:
    """True if a reading that was complete at `t` is the truth at the last update before it, or, if one came in between, the one before."""
    last = math.floor((t - offset_s) / UPDATE_S) * UPDATE_S + offset_s
    return value is not None and any(abs(value - truth(moment)) <= tolerance for moment in (last, last - UPDATE_S))


def test_power_and_energy_are_the_truth_within_one_update_of_the_board(host: FakeHost) -> None:
    with host.monitor(PREFILL_GPUS="0", DECODE_GPUS="1") as monitor:
        monitor.wait_ready()
        id_ = monitor.record(name="truth", interval_s=0.05)
        time.sleep(2.2)
        header, samples = monitor.fetch(id_)

    assert (header.backend, header.simulated) == ("nvml", False)
    assert [(gpu.index, gpu.name, gpu.uuid, gpu.role, gpu.power_limit_w) for gpu in header.gpus] == [
        (0, "Fake H200", "GPU-fake-0", Role.PREFILL, 700.0),
        (1, "Fake H200", "GPU-fake-1", Role.DECODE, 700.0),
    ]
    assert header.gpus[0].driver == "590.48.01-fake"  # never a real board, wherever this runs
    for board in (0, 1):
        check_against_truth(FakeTruth(board), [sample for sample in samples if sample.index == board])


def check_against_truth(truth: FakeTruth, samples: list[GpuSample]) -> None:
    assert len(samples) >= 20
    for sample in samples:
        assert sample.errors == {}
        assert close_to_an_update(sample.power_w, lambda t: truth.mean_w(t, 0.025), sample.t, 0.01, OFFSET_S)
        assert close_to_an_update(sample.power_average_w, lambda t: truth.mean_w(t, 1.0), sample.t, 0.01, OFFSET_S)
        assert close_to_an_update(sample.energy_mj, lambda t: truth.joules(0, t) * 1e3, sample.t, 2.0)
        assert (sample.memory_clock_mhz, sample.utilization, sample.memory_utilization) == (3201, 0.75, 0.25)
        assert (sample.temperature_c, sample.memory_used_bytes) == (45.0, 100 << 30)
        assert sample.throttle_reasons in {4, 5}

    # The wave is one second long: the second's average hardly moves while the instant power swings all the way.
    powers = [sample.power_w or 0 for sample in samples]
    averages = [sample.power_average_w or 0 for sample in samples]
    assert max(powers) - min(powers) > 0.9 * (truth.busy_w - truth.idle_w)
    assert max(averages) - min(averages) < 0.1 * (truth.busy_w - truth.idle_w)

    first, last = samples[0], samples[-1]
    counted = ((last.energy_mj or 0) - (first.energy_mj or 0)) / 1e3
    assert counted == pytest.approx(truth.joules(first.t, last.t), abs=UPDATE_S * truth.busy_w)
    integral = sum((b.t - a.t) * ((a.power_w or 0) + (b.power_w or 0)) / 2 for a, b in itertools.pairwise(samples))
    assert integral == pytest.approx(counted, abs=2 * UPDATE_S * truth.busy_w)


@pytest.mark.timed
def test_a_recording_of_the_fake_shows_what_one_of_a_real_board_shows(host: FakeHost) -> None:
    """The same look at both (test_capture.py has the real board's): periods, phases and windows come out alike."""
    # 0.53 s instead of 0.5: the edges then fall everywhere between the updates.
    with host.monitor(FAKE_NVML_HALF_PERIOD_MS="530") as monitor:
        monitor.wait_ready()
        id_ = monitor.record(name="fast", interval_s=0.02)
        time.sleep(7)
        _, samples = monitor.fetch(id_)

    found = fit([sample for sample in samples if sample.index == 0])
    assert found.energy_period_s == pytest.approx(H200.energy_update_s, abs=0.005)
    assert found.power_period_s == pytest.approx(H200.energy_update_s, abs=0.005)
    assert found.power_offset_s == pytest.approx(H200.power_offset_s, abs=0.02)
    assert found.average_window_s == pytest.approx(H200.average_window_s, abs=0.05)
    assert found.average_error < 0.05
    assert found.instant_least_s <= H200.instant_window_s + 0.01
    assert H200.instant_window_s - 0.01 <= found.instant_most_s < 0.08
    assert found.idle_w == pytest.approx(H200.idle_w, rel=0.02)
    assert found.busy_w == pytest.approx(H200.busy_w, rel=0.02)


def test_a_field_that_fails_is_absent_and_named_although_the_call_succeeds(host: FakeHost) -> None:
    host.fail("field 186 3", "call clock 999", "call temperature_v 13")
    with host.monitor() as monitor:
        monitor.wait_ready()
        id_ = monitor.record(name="unsupported")
        _, samples = monitor.fetch(id_)
        page = monitor.page()

    for sample in samples:
        assert (sample.power_w, sample.sm_clock_mhz, sample.memory_clock_mhz) == (None, None, None)
        assert sample.power_average_w is not None
        assert sample.energy_mj is not None
        assert sample.temperature_c == 44.0  # the older call stands in
        assert sample.errors == {
            "power_w": "Not Supported",
            "sm_clock_mhz": "Unknown Error",
            "memory_clock_mhz": "Unknown Error",
        }
    assert pick(page, "pd_gpu_power_watts", kind="instant") == {}
    assert pick(page, "pd_gpu_clock_hertz") == {}
    assert set(pick(page, "pd_gpu_power_watts", kind="average")) == {"0", "1"}
    assert pick(page, "pd_exporter_read_errors_total", field="power_w")[""] >= 2
    assert pick(page, "pd_exporter_backend_up") == {"": 1.0}


def test_the_energy_counter_may_be_all_that_fails(host: FakeHost) -> None:
    host.fail("field 83 4")
    with host.monitor() as monitor:
        monitor.wait_ready()
        page = monitor.page()

    assert pick(page, "pd_gpu_energy_joules_total") == {}
    assert set(pick(page, "pd_gpu_power_watts", kind="instant")) == {"0", "1"}


def test_a_gpu_lost_mid_run_is_an_error_until_it_is_back_and_the_other_reads_on(host: FakeHost) -> None:
    with host.monitor() as monitor:
        monitor.wait_ready()
        id_ = monitor.record(name="loss", interval_s=0.05)
        host.fail("lost 1")
        monitor.wait_for(lambda: set(instant(monitor)) == {"0"})
        ready = readiness(monitor)
        host.fail()
        monitor.wait_for(lambda: set(instant(monitor)) == {"0", "1"})
        _, samples = monitor.fetch(id_)

    zero, one = ([sample for sample in samples if sample.index == index] for index in (0, 1))
    assert ready == (200, "GPU 1: GPU is lost")
    assert all(not sample.errors for sample in zero)
    failed = [sample for sample in one if sample.errors]
    assert failed
    assert all(
        sample.errors == {WHOLE: "GPU is lost"} and sample.power_w is None and sample.energy_mj is None
        for sample in failed
    )
    assert not one[0].errors
    assert not one[-1].errors


def test_a_driver_restart_is_survived(host: FakeHost) -> None:
    with host.monitor() as monitor:
        monitor.wait_ready()
        host.fail("driver 2", "init 9")
        monitor.wait_for(lambda: readiness(monitor)[0] == 503)
        monitor.wait_for(lambda: "Driver Not Loaded" in readiness(monitor)[1])
        without = monitor.page()
        host.fail("driver 2")
        monitor.wait_ready()
        again = monitor.page()

    assert pick(without, "pd_gpu_power_watts") == {}
    assert pick(without, "pd_exporter_backend_up") == {"": 0.0}
    assert set(pick(again, "pd_gpu_power_watts", kind="instant")) == {"0", "1"}


def test_a_gpu_that_falls_off_the_bus_does_not_pass_its_index_on(host: FakeHost) -> None:
    with host.monitor(PREFILL_GPUS="0", DECODE_GPUS="1") as monitor:
        monitor.wait_ready()
        host.fail("driver 2", "absent 0")  # NVML calls board 1 the first one now
        monitor.wait_for(lambda: set(instant(monitor)) == {"1"})
        page = monitor.page()

    assert pick(page, "pd_gpu_info", gpu="1", uuid="GPU-fake-1", role="decode") == {"1": 1.0}
    assert pick(page, "pd_gpu_info", uuid="GPU-fake-0") == {}


def test_without_the_library_the_monitor_runs_says_so_and_finds_it_later(host: FakeHost, tmp_path: Path) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    library.write_bytes(b"")  # an empty file stops the loader's search, whatever the machine has
    with host.monitor(LD_LIBRARY_PATH=str(tmp_path)) as monitor:
        monitor.wait_for(lambda: "Library Not Found" in readiness(monitor)[1])
        status, _ = readiness(monitor)
        page = monitor.page()
        gpus = monitor.request("GET", "/gpus")
        refusal = monitor.request("POST", "/recordings", {"name": "nothing"})

        new = tmp_path / "new"
        new.write_bytes(host.library.read_bytes())
        new.replace(library)
        monitor.wait_ready()

    assert status == 503
    assert pick(page, "pd_exporter_backend_up") == {"": 0.0}
    assert pick(page, "pd_exporter_last_success_timestamp_seconds") == {}
    assert gpus == (200, b"[]")
    assert refusal[0] == 409
    assert "no GPU" in json.loads(refusal[1])["error"]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(["fail 999"], id="every call"),
        pytest.param(["field 186 999", "field 185 999", "field 83 999"], id="every reading of power and energy"),
        pytest.param(["call fields 999"], id="the call for them"),
        pytest.param(["lost 0", "lost 1"], id="every GPU lost"),
    ],
)
def test_a_monitor_that_can_read_no_power_is_not_ready_and_says_so(host: FakeHost, faults: list[str]) -> None:
    with host.monitor() as monitor:
        monitor.wait_ready()
        host.fail(*faults)
        monitor.wait_for(lambda: readiness(monitor)[0] == 503)
        _, reason = readiness(monitor)
        page = monitor.page()
        host.fail()
        monitor.wait_ready()
        log = monitor.stop()

    assert "Unknown Error" in reason or "GPU is lost" in reason
    assert pick(page, "pd_exporter_backend_up") == {"": 0.0}
    assert pick(page, "pd_exporter_gpu_readable") == {"0": 0.0, "1": 0.0}
    assert pick(page, "pd_gpu_power_watts", kind="instant") == {}
    told = [line for line in log.splitlines() if "reading failed" in line]
    assert 1 <= len(told) <= 8, log  # a few lines, not ten a second
    assert "reading works again" in log


def test_a_monitor_that_never_could_read_is_not_ready(host: FakeHost) -> None:
    host.fail("field 186 999", "field 185 999", "field 83 999")
    with host.monitor() as monitor:
        monitor.wait_for(lambda: "Unknown Error" in readiness(monitor)[1])
        status, _ = readiness(monitor)
        time.sleep(0.3)

        assert (status, readiness(monitor)[0]) == (503, 503)


def test_readings_that_cannot_be_true_are_counted_and_kept_off_the_page_but_recorded(host: FakeHost) -> None:
    with host.monitor() as monitor:
        monitor.wait_ready()
        id_ = monitor.record(name="jump", interval_s=0.05)
        host.fail("adds 0 5000000", "power 1 0")
        monitor.wait_for(lambda: implausible(monitor, "0", "energy_mj") >= 1)
        monitor.wait_for(lambda: implausible(monitor, "1", "power_w") >= 3)
        page = monitor.page()
        _, samples = monitor.fetch(id_)
        log = monitor.stop()

    for kind in ("instant", "average"):
        assert set(pick(page, "pd_gpu_power_watts", kind=kind)) == {"0"}
    assert any(sample.power_w == 0.0 for sample in samples)  # records are raw
    assert "jumped by 5,000," in log
    assert "0.0 W although the board answers" in log


def test_a_counter_that_has_stalled_is_reported(host: FakeHost) -> None:
    with host.monitor() as monitor:
        monitor.wait_ready()
        host.fail("counter 1 123456")
        monitor.wait_for(lambda: implausible(monitor, "1", "energy_mj") >= 2)

        assert implausible(monitor, "0", "energy_mj") == 0


def implausible(process: MonitorProcess, gpu: str, field: str) -> float:
    return pick(process.page(), "pd_exporter_implausible_readings_total", gpu=gpu, field=field).get(gpu, 0.0)


def test_calls_that_block_skip_ticks_and_count_them(host: FakeHost) -> None:
    host.fail("block 150")  # a board, so 0.3 s a reading
    with host.monitor() as monitor:
        monitor.wait_ready()
        monitor.wait_for(lambda: pick(monitor.page(), "pd_exporter_missed_ticks_total")[""] >= 4)
        page = monitor.page()

    calls = pick(page, "pd_exporter_call_seconds_count")[""]
    assert pick(page, "pd_exporter_call_seconds_sum")[""] >= 0.3 * calls
    assert set(pick(page, "pd_gpu_power_watts", kind="instant")) == {"0", "1"}


def test_a_call_that_hangs_is_reported_while_it_does(host: FakeHost) -> None:
    """If the call were made on the event loop, nobody could be told before it is over, and then the sample is fresh."""
    with host.monitor() as monitor:
        monitor.wait_ready()
        host.fail("block 700")
        monitor.wait_for(lambda: "the back end hangs" in readiness(monitor)[1])
        host.fail()
        monitor.wait_ready()


def test_what_is_slow_or_dear_is_read_once_a_second_however_fast_the_recording_is(host: FakeHost) -> None:
    host.fail("call utilization 999")
    with host.monitor() as monitor:
        monitor.wait_ready()
        monitor.wait_for(lambda: failures(monitor, "utilization") > 0)
        before = failures(monitor, "utilization")
        begun = time.monotonic()
        id_ = monitor.record(name="fast", interval_s=0.05)
        monitor.wait_for(lambda: failures(monitor, "utilization") >= before + 4)
        reads, took = failures(monitor, "utilization") - before, time.monotonic() - begun
        _, samples = monitor.fetch(id_)

    assert reads <= 2 * (took + 2)  # two boards; the first and the last second may have begun before and may go on
    assert len(samples) > 3 * reads
    assert all(sample.errors["utilization"] == "Unknown Error" for sample in samples)


def failures(process: MonitorProcess, field: str) -> float:
    return pick(process.page(), "pd_exporter_read_errors_total", field=field).get("", 0.0)


def test_a_live_page_has_every_series_and_what_only_the_exporter_shows(host: FakeHost) -> None:
    host.fail(f"process {os.getpid()}")
    with host.monitor() as monitor:
        monitor.wait_ready()
        page = monitor.page()

    there = {name for name, _ in page}
    # The closure needs a whole minute, and a pod a kubelet.
    assert {one.name for one in SERIES} - there == {"pd_gpu_energy_closure_ratio", "pd_gpu_pod_info"}
    assert pick(page, "pd_gpu_power_watts", kind="memory_average") == {"0": 46.56, "1": 46.56}
    assert pick(page, "pd_gpu_clock_event_seconds_total", reason="sw_power_cap") == {"0": 1.5, "1": 1.5}
    assert pick(page, "pd_gpu_clock_event_seconds_total", reason="hw_thermal") == {"0": 0.0, "1": 0.0}
    assert pick(page, "pd_gpu_pcie_bytes_total", direction="rx", gpu="0") == {"0": 198_000}
    assert pick(page, "pd_gpu_nvlink_bytes_total", direction="tx", gpu="0") == {"0": 138_000 * 1024}
    assert pick(page, "pd_gpu_processes") == {"0": 1.0, "1": 1.0}
    assert pick(page, "pd_gpu_process_memory_bytes", pid=str(os.getpid()))["0"] == 1 << 30
    assert pick(page, "pd_gpu_power_limit_watts")["0"] == H200.power_limit_w


def test_a_second_monitor_on_the_port_ends_with_a_sentence(host: FakeHost) -> None:
    with host.monitor() as monitor:
        other = MonitorProcess({"MONITOR_BACKEND": "simulated"}, port=monitor.port)
        status, log = other.wait()

    assert status == 1
    assert "address already in use" in log
    assert "Traceback" not in log
