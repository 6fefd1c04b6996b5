"""`pd-monitor clocks` over the C library, whose boards keep their settings when the process that made them has ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.monitor import H200, ClockHost, MonitorProcess, build_fake_nvml
from support.waiting import until

LOCKS = ("--prefill-lock-mhz", "1980", "--decode-lock-mhz", "1200", "--decode-cap-w", "400")
SET = {0: (1830, 0), 1: (1200, 400_000)}  # the library clamps 1980 MHz
DEFAULT_MW = int(H200.power_limit_w * 1000)
FREE = {0: (0, 0), 1: (0, DEFAULT_MW)}


@pytest.fixture(name="library", scope="module")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(name="host")
def _host(library: Path, tmp_path: Path) -> ClockHost:
    return ClockHost(library, tmp_path)


@contextlib.contextmanager
def held(host: ClockHost, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A holder whose changes are made."""
    process = host.start("apply", *(arguments or LOCKS), **environment)
    try:
        until(lambda: host.now == SET or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_nothing_is_changed_unless_it_is_allowed(host: ClockHost) -> None:
    planned = host.run("plan", *LOCKS, ALLOW_CLOCK_CONTROL="")
    applied = host.run("apply", *LOCKS, ALLOW_CLOCK_CONTROL="")

    assert planned[0] == 0
    assert "GPU 0 GPU-fake-0 prefill: lock the graphics clock to 1980 MHz" in planned[1]
    assert "GPU 1 GPU-fake-1 decode" in planned[1]
    assert "given back: 700 W" in planned[1]
    assert "nothing would be changed" in planned[1]
    assert (applied[0], "ALLOW_CLOCK_CONTROL" in applied[1]) == (2, True)
    assert host.setters == []
    assert not host.journal.exists()


def test_the_journal_is_there_before_the_first_setter_and_everything_is_back_at_the_end(host: ClockHost) -> None:
    status, said = host.run("apply", *LOCKS, "--clocks-hold-s", "2")

    assert status == 0, said
    assert host.setters == [
        "lock 0 1830 journal",
        "lock 1 1200 journal",
        "cap 1 400000 journal",
        "reset 0 0 journal",
        "reset 1 0 journal",
        f"cap 1 {DEFAULT_MW} journal",
    ]
    assert host.now == FREE
    assert not host.journal.exists()
    # What was asked for is compared with what the clock does under load.
    assert "GPU 0: clamped, clock under load 1830 MHz" in said
    assert "GPU 1: held, never reached, clock under load 1200 MHz" in said


def test_a_limit_that_was_not_the_default_is_given_back(host: ClockHost) -> None:
    host.state.write_text("1 0 500000 0 0\n")

    status, said = host.run("apply", "--decode-cap-w", "300", "--clocks-hold-s", "0.5")

    assert status == 0, said
    assert host.now[1] == (0, 500_000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_everything_is_taken_back(host: ClockHost, number: signal.Signals) -> None:
    with held(host) as process:
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)

    assert process.returncode == 0, said
    assert host.now == FREE
    assert not host.journal.exists()


def test_the_guard_takes_everything_back_when_the_holder_is_killed(host: ClockHost) -> None:
    with held(host) as process:
        process.kill()
        until(lambda: not host.journal.exists())

    assert host.now == FREE


def test_the_guard_restores_everything_after_a_holder_that_has_stalled(host: ClockHost) -> None:
    with held(host, *LOCKS, CLOCKS_LEASE_S="2") as process:
        process.send_signal(signal.SIGSTOP)
        until(lambda: not host.journal.exists())
        freed = host.now
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=60)

    assert freed == FREE
    assert process.returncode == 5
    assert "lease was lost" in said
    assert host.now == FREE


def test_a_holder_whose_guard_was_killed_takes_everything_back_itself(host: ClockHost) -> None:
    with held(host) as process:
        os.kill(host.guard_of(process), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)

    assert process.returncode == 5, said
    assert host.now == FREE
    assert not host.journal.exists()


def kill_all(host: ClockHost) -> None:
    """Holder and guard at once, as a power cut would."""
    with held(host) as process:
        os.kill(host.guard_of(process), signal.SIGKILL)
        process.kill()
        process.wait()
    assert host.now == SET
    assert host.journal.exists()


def test_after_both_were_killed_the_next_start_takes_everything_back(host: ClockHost) -> None:
    kill_all(host)

    refused = host.run("restore", ALLOW_CLOCK_CONTROL="")
    restored = host.run("restore")
    again = host.run("restore")

    assert refused[0] == 2
    assert restored[0] == 0
    assert restored[1].count("restored after a process that was killed") == 2
    assert host.now == FREE
    assert not host.journal.exists()
    assert again == (0, "there is nothing to restore\n")


def test_the_next_apply_takes_back_what_it_finds_before_its_own(host: ClockHost) -> None:
    kill_all(host)

    status, said = host.run("apply", "--prefill-lock-mhz", "1200", "--clocks-hold-s", "0.3")

    assert status == 0, said
    assert host.now == FREE


@pytest.mark.parametrize("allowed", ["on", "off"])
def test_the_exporters_start_takes_back_or_says_what_stands(host: ClockHost, allowed: str) -> None:
    kill_all(host)

    monitor = MonitorProcess({**host.environment, "ALLOW_CLOCK_CONTROL": allowed})
    try:
        monitor.wait_ready()
    finally:
        log = monitor.stop()

    assert host.now == (FREE if allowed == "on" else SET)
    assert ("clocks restored" in log) == (allowed == "on")
    assert ("may still be in force" in log) == (allowed == "off")


def test_a_second_holder_is_refused(host: ClockHost) -> None:
    with held(host):
        status, said = host.run("apply", *LOCKS)
        assert host.now == SET

    assert status == 3
    assert "another `pd-monitor clocks` holds" in said


def test_without_permission_nothing_stays_behind(host: ClockHost) -> None:
    host.fail("deny 4")

    status, said = host.run("apply", *LOCKS)

    assert status == 4
    assert "CAP_SYS_ADMIN" in said
    assert "Traceback" not in said
    assert not host.journal.exists()


def test_a_lock_that_the_driver_ignores_is_seen_under_load(host: ClockHost) -> None:
    host.fail("ignore lock", "ignore cap")

    status, said = host.run("apply", *LOCKS, "--clocks-hold-s", "1.5")

    assert status == 0, said
    assert "GPU 1: ignored, ignored, clock under load 1980 MHz" in said


def test_a_gpu_lost_while_it_is_locked_stays_in_the_journal_until_it_is_back(host: ClockHost) -> None:
    with held(host) as process:
        host.fail("lost 1")
        said, _ = process.communicate(timeout=60)
    kept = json.loads(host.journal.read_text())["changes"]
    zero = host.now[0]
    host.fail()

    status, restored = host.run("restore")

    assert process.returncode == 2
    assert "GPU is lost" in said
    assert [change["uuid"] for change in kept] == ["GPU-fake-1"]
    assert zero == (0, 0)
    assert status == 0, restored
    assert host.now == FREE


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("mig 1", "GPU 1: MIG is on"),
        ("vgpu 2", "shared virtual GPU"),
        (f"process {os.getppid()}", "not named in CLOCKS_ALLOW_PIDS"),
        ("call processes 3", "cannot be said who uses the GPU"),
        ("call cap 3", "could not be restored"),
    ],
)
def test_boards_that_must_not_be_touched_are_not(host: ClockHost, fault: str, reason: str) -> None:
    host.fail(fault)

    status, said = host.run("apply", *LOCKS)

    assert status == 2
    assert reason in said
    assert host.setters == []


def test_engines_may_use_the_gpus_with_their_children(host: ClockHost) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        host.fail(f"process {child.pid}")
        status, said = host.run("apply", *LOCKS, "--clocks-hold-s", "0.3", "--clocks-allow-pids", str(os.getpid()))
        child.communicate(b"\n")

    assert status == 0, said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--decode-lock-mhz", "5000"), "outside of its 345 to 1980 MHz"),
        (("--decode-cap-w", "900"), "outside of its 200 to 700 W"),
        (("--combined-lock-mhz", "1200"), "no GPU has the role combined"),
        ((), "nothing is asked for"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_with_its_reason(
    host: ClockHost, arguments: tuple[str, ...], reason: str
) -> None:
    status, said = host.run("apply", *arguments)

    assert status == 2
    assert reason in said
    assert host.setters == []


# A workload as the load generator would leave it: a summary, and a manifest with the measured window.
WORKLOAD = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[1])
time.sleep(0.3)
begun = time.monotonic()
time.sleep(2.0)
ended = time.monotonic()
time.sleep(0.3)
from pd_contracts.records import *
manifest = Manifest(run_id="x", created="x", clock=Clock.now(), deployment=Deployment(), schedule_hash="x", window=(begun, ended),
    workload=Workload(dataset="random", arrival="poisson", rate=1, duration_s=1, requests=1, seed=0))
write_json(out / "manifest.json", manifest)
write_json(out / "summary.json", {"total_input_tokens": 1000, "total_output_tokens": 100, "median_ttft_ms": 12.5})
"""


def test_a_sweep_gives_latency_against_joules_a_token_by_role(host: ClockHost) -> None:
    out = host.folder / "sweep"
    options = ("--sweep-values", "1200,900", "--sweep-settle-s", "0.2", "--sweep-out", str(out))

    status, said = host.run("sweep", *options, "--", sys.executable, "-c", WORKLOAD, "{out}")

    assert status == 0, said
    points = json.loads((out / "sweep.json").read_text())
    assert [point["requested"] for point in points[:1] + points[-1:]] == [None, None]
    assert {point["requested"] for point in points[1:-1]} == {1200, 900}
    by_step = {point["requested"]: point for point in points[1:]}  # the last of the two without a lock
    assert {point["verdict"] for point in points[1:-1]} == {"held"}
    assert {step: point["achieved_mhz"] for step, point in by_step.items()} == {None: 1980, 1200: 1200, 900: 900}
    for step, point in by_step.items():
        assert point["window"] == "run"
        assert point["latencies_ms"]["median_ttft_ms"] == 12.5
        share = ((step or H200.sm_clock_mhz) / H200.sm_clock_mhz) ** 3
        idle, busy = H200.idle_w + 10, H200.busy_w + 20
        true = 2 * idle + (idle + (busy - idle) * share - idle) * 1.0  # two seconds, of which one is busy
        assert point["joules"]["decode"] == pytest.approx(true, abs=2 * H200.energy_update_s * busy)
        assert point["joules_per_token"]["decode"] == pytest.approx(point["joules"]["decode"] / 100)
        assert point["joules_per_token"]["prefill"] == pytest.approx(point["joules"]["prefill"] / 1000)
    page = (out / "sweep.md").read_text()
    assert "| decode 1200 MHz | 1200 | held | 12.5 |" in page
    steps = [line.split(" | ")[0] for line in page.splitlines() if line.startswith(("| free", "| decode"))]
    assert steps == ["| free", "| decode 1200 MHz", "| decode 900 MHz", "| free"]
    assert "Smaller differences mean nothing" in page
    assert host.now == {0: (0, 0), 1: (0, 0)}
    assert not host.journal.exists()


def test_a_sweep_whose_command_fails_says_so_and_leaves_no_lock(host: ClockHost) -> None:
    out = host.folder / "sweep"
    options = ("--sweep-values", "1200", "--sweep-settle-s", "0", "--sweep-out", str(out))

    status, said = host.run("sweep", *options, "--", sys.executable, "-c", "raise SystemExit(7)")

    assert status == 1
    assert said.count("the command ended with 7 |") == 3
    assert "measured nothing reliable" in said
    assert host.now == {0: (0, 0), 1: (0, 0)}


def test_a_sweep_that_is_stopped_ends_its_command_and_takes_the_lock_back(host: ClockHost) -> None:
    out, alive = host.folder / "sweep", host.folder / "alive"
    # The first run, without a lock, ends at once; the second would sleep on.
    command = f"import os, sys, time; 'lock' in sys.argv[1] and (open({str(alive)!r}, 'w').write(str(os.getpid())), time.sleep(60))"
    options = ("--sweep-values", "1200", "--sweep-settle-s", "0", "--sweep-out", str(out))
    process = host.start("sweep", *options, "--", sys.executable, "-c", command, "{out}")
    try:
        until(lambda: alive.exists() and alive.read_text() != "")
        locked = host.now
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    assert locked[1] == (1200, 0)
    assert process.returncode == 130, said
    assert not Path(f"/proc/{alive.read_text()}").exists()
    assert host.now == {0: (0, 0), 1: (0, 0)}
    assert not host.journal.exists()
