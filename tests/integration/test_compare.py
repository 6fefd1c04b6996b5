"""`pdctl compare` from end to end, with simulated engines and loads of a few seconds."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from support.control import alive, environment, pdctl
from support.waiting import until

from pd_contracts.names import SIMULATED_ENGINE, Topology
from pd_contracts.records import (
    GPU,
    MANIFEST,
    NOT_MEASURED,
    REQUESTS,
    SUMMARY,
    GpuHeader,
    GpuSample,
    Manifest,
    Missing,
    RequestRecord,
    read_json,
    read_lines,
)
from pd_control.compare.stages import folder_of
from pd_control.supervision.state import Store

# Engines and load generator are processes that share this machine with other tests.
pytestmark = pytest.mark.timeout(400)
LONGEST_S = 300
LOAD = ("--input-output", "256:8", "--duration", "3", "--seeds", "5")
FOLDERS = {Topology.COMBINED: "2c", Topology.DISAGG: "1p1d"}
# A busy test machine may make the client late; what is looked at here does not depend on that.
PATIENT = {"LOADGEN_LAG_LIMIT_MS": "1000", "LOADGEN_IDLE": "0.5"}


def comparison(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder / "state", **PATIENT, **variables)
    return pdctl("compare", "--engine", "sim", *words, "--out", "results", env=env, cwd=folder, timeout=LONGEST_S)


class Done:
    """A finished comparison."""

    def __init__(self, folder: Path, result: subprocess.CompletedProcess[str]) -> None:
        self.out = folder / "results"
        self.result = result

    def run(self, topology: Topology) -> Path:
        return self.out / FOLDERS[topology] / "256x8-rate3-seed5"

    def manifest(self, topology: Topology) -> Manifest:
        return read_json(self.run(topology) / MANIFEST, Manifest)


@pytest.fixture(name="done", scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("compare")
    env = environment(folder / "state")
    # The proxy's port is busy, as on a machine where a deployment runs: the comparison takes another one.
    with socket.create_server(("127.0.0.1", int(env["HTTP_PROXY_PORT"]))):
        words = ("compare", "--engine", "sim", *LOAD, "--rates", "3", "--out", "results")
        return Done(folder, pdctl(*words, env={**env, **PATIENT}, cwd=folder, timeout=LONGEST_S))


def test_it_ends_well_and_names_the_report_last(done: Done) -> None:
    assert done.result.returncode == 0, done.result.stdout + done.result.stderr
    assert done.result.stdout.rstrip().splitlines()[-1] == "Report: results/report.html"


def test_both_topologies_were_offered_the_same_schedule(done: Done) -> None:
    disagg, combined = (done.manifest(topology) for topology in Topology)

    assert disagg.schedule_hash == combined.schedule_hash
    assert disagg.workload == combined.workload
    assert (disagg.workload.seed, disagg.workload.rate) == (5, 6)


@pytest.mark.parametrize("topology", Topology)
def test_each_run_is_whole_and_says_what_served_it(done: Done, topology: Topology) -> None:
    manifest = done.manifest(topology)

    assert manifest.complete
    assert manifest.client is not None
    deployment = manifest.deployment
    assert (deployment.topology, deployment.gpus, deployment.simulated) == (topology, 2, True)
    assert {engine.engine for engine in deployment.engines} == {SIMULATED_ENGINE}
    names = {Topology.DISAGG: ["decode-0", "prefill-0"], Topology.COMBINED: ["combined-0", "combined-1"]}
    assert sorted(engine.name for engine in deployment.engines) == names[topology]
    assert sorted(gpu for engine in deployment.engines for gpu in engine.gpus) == [0, 1]


@pytest.mark.parametrize("topology", Topology)
def test_every_request_was_served(done: Done, topology: Topology) -> None:
    requests = list(read_lines(done.run(topology) / REQUESTS, RequestRecord))

    measured = [request for request in requests if not request.warmup]
    assert len(measured) == done.manifest(topology).workload.requests
    assert [request.error for request in requests if request.error] == []
    assert {request.output_tokens for request in measured} == {8}
    stages = [request.stages for request in measured]
    assert all(stage is not None and bool(stage.prefill) == (topology is Topology.DISAGG) for stage in stages)
    assert (done.run(topology) / SUMMARY).exists()


@pytest.mark.parametrize("topology", Topology)
def test_power_was_recorded_by_role(done: Done, topology: Topology) -> None:
    path = done.run(topology) / GPU
    header = next(iter(read_lines(path, GpuHeader)))
    samples = list(read_lines(path, GpuSample, skip=1))

    assert header.simulated
    roles = {Topology.DISAGG: {0: "prefill", 1: "decode"}, Topology.COMBINED: {0: "combined", 1: "combined"}}
    assert {info.index: info.role for info in header.gpus} == roles[topology]
    window = done.manifest(topology).window
    assert window is not None
    inside = [sample for sample in samples if window[0] <= sample.t <= window[1]]
    assert len(inside) > 20
    assert all(sample.energy_mj for sample in inside)


def test_the_report_is_there_and_says_simulated(done: Done) -> None:
    html = (done.out / "report.html").read_text()
    markdown = (done.out / "report.md").read_text()

    for text in (html, markdown, done.result.stdout):
        assert "SIMULATED" in text
    assert list((done.out / "plots").glob("*.png"))


def test_nothing_is_left_running_and_nothing_is_missing(done: Done) -> None:
    assert processes_with(f"STATE_DIR={done.out.parent / 'state'}") == []
    assert not (done.out / NOT_MEASURED).exists()


def test_a_second_start_measures_nothing_again(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.out.glob("*/*/requests.jsonl")}
    result = comparison(done.out.parent, *LOAD, "--rates", "3")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "  time       a few seconds, for the report: nothing is left to measure\n" in result.stdout
    assert result.stdout.count("every point was measured before") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_time_is_that_of_what_is_left(done: Done) -> None:
    fresh = comparison(done.out.parent, *LOAD, "--rates", "3,4", "--dry-run", "--restart")
    rest = comparison(done.out.parent, *LOAD, "--rates", "3,4", "--dry-run")

    # Two deployments start in 5 s each; a point is 3 s long and has 8 s beside it.
    assert "  time       about 54 s\n" in fresh.stdout
    assert "  time       about 32 s, for what was not measured before\n" in rest.stdout


def processes_with(variable: str) -> list[int]:
    """Living processes that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # ended, or somebody else's
    return found


def started(folder: Path, *words: str, state: Path | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pd_control", "compare", "--engine", "sim", *words, "--out", "results"]
    env = environment(state or folder / "state", **PATIENT)
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_killed_comparison_takes_everything_with_it(tmp_path: Path) -> None:
    with started(tmp_path, *LOAD, "--rates", "3") as running:
        store = Store(tmp_path / "state" / folder_of(tmp_path / "results"))
        until(lambda: (state := store.load()) is not None and len(state.processes) == 4)
        running.kill()

    until(lambda: processes_with(f"STATE_DIR={tmp_path / 'state'}") == [])


def test_what_was_measured_before_an_interruption_is_kept_and_the_rest_follows(tmp_path: Path) -> None:
    modes = ("--modes", "serve,phase-split,batch", "--batch-sizes", "1,2")
    words = (*LOAD, "--rates", "3", *modes, "--deployments", "1c", "--gpus", "1", "--no-report")
    names = ("phase-split", "batch", "rate3")
    phases, batches, served = (tmp_path / f"results/1c/256x8-{name}-seed5" for name in names)
    store = Store(tmp_path / "state" / folder_of(tmp_path / "results"))
    interrupted(tmp_path, words, lambda: (state := store.load()) is not None and state.processes)
    interrupted(tmp_path, words, (batches / MANIFEST).exists)
    interrupted(tmp_path, words, (served / MANIFEST).exists)
    kept = measured((phases, batches))
    assert not read_json(served / MANIFEST, Manifest).complete

    result = comparison(tmp_path, *words)

    assert result.returncode == 0, result.stdout + result.stderr
    assert measured((phases, batches)) == kept
    assert read_json(served / MANIFEST, Manifest).complete


def measured(runs: Iterable[Path]) -> dict[Path, int]:
    """Whole runs, and when their requests were written."""
    return {run: (run / REQUESTS).stat().st_mtime_ns for run in runs if read_json(run / MANIFEST, Manifest).complete}


def interrupted(folder: Path, words: Sequence[str], when: Callable[[], object]) -> None:
    """Ctrl-C at a moment; nothing may go on running."""
    with started(folder, *words) as running:
        until(when, 90)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        assert running.wait(30) == 130
    assert processes_with(f"STATE_DIR={folder / 'state'}") == []


def test_rates_are_found(tmp_path: Path) -> None:
    # Wide limits: a machine that others use meets them at the first rate, and no machine meets them with a queue.
    limits = ("--goodput", "ttft:300 tpot:100", "--start-rate", "16", "--attainment", "0.8")
    words = (
        "--input-output",
        "1024:4",
        "--duration",
        "1.5",
        "--deployments",
        "1c",
        "--gpus",
        "1",
        *limits,
        "--lang",
        "zh",
    )
    # Interrupted while it searches, it goes on from what it has found out.
    points = tmp_path / "results/1c"
    interrupted(tmp_path, words, lambda: len(list(points.glob(f"*/{MANIFEST}"))) >= 2)
    kept = measured(path.parent for path in points.glob(f"*/{MANIFEST}"))
    assert len(kept) == 1

    result = comparison(tmp_path, *words)

    assert result.returncode in {0, 3}, result.stdout + result.stderr
    assert measured(kept) == kept
    rates = sorted(float(path.name.split("-")[1].removeprefix("rate")) for path in (tmp_path / "results/1c").iterdir())
    shares = {}
    for rate in rates:
        (folder,) = (tmp_path / "results/1c").glob(f"1024x4-rate{rate:g}-*")
        shares[rate] = json.loads((folder / SUMMARY).read_text())["pdstack"]["attainment"]["all"]
    good = [rate for rate in rates if shares[rate] >= 0.8]
    bad = [rate for rate in rates if shares[rate] < 0.8]
    assert good, shares
    assert bad, shares
    assert len(rates) >= 5
    assert "found for each deployment" in result.stdout
    # Of so many points it shows what decides, in the language that was asked for, and no table for each.
    _, _, verdict = result.stdout.partition("\nVerdict\n")
    assert "TTFT ≤ 300 ms" in verdict
    assert "┃" not in verdict
    assert verdict.rstrip().endswith("报告：results/report.html")


def test_a_deployment_that_does_not_start_is_in_the_report_and_the_others_are_measured(tmp_path: Path) -> None:
    # Only disaggregated engines have a connector, so only they miss its folder.
    deployments = ("--deployments", "1p1d:example,2c")
    result = comparison(tmp_path, *LOAD, "--rates", "3", *deployments, KV_SHARED_PATH="/proc/nowhere")

    assert result.returncode == 1, result.stdout + result.stderr
    (missing,) = read_json(tmp_path / "results" / NOT_MEASURED, Missing).parts
    assert missing.what == "disagg 1P1D example"
    assert "ended" in missing.reason
    assert read_json(tmp_path / "results/2c/256x8-rate3-seed5" / MANIFEST, Manifest).complete
    assert "not measured: disagg 1P1D example" in result.stdout
    assert missing.reason in (tmp_path / "results/report.md").read_text()
    assert "Traceback" not in result.stdout + result.stderr


def test_what_is_no_run_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "results" / "2c" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")

    result = comparison(tmp_path, *LOAD, "--rates", "3")

    assert result.returncode == 1
    assert "choose another --out" in result.stdout
    assert precious.read_text() == "years of work"


def earlier(folder: Path) -> Path:
    """What an earlier comparison left in the results folder of `comparison`: one report."""
    report = folder / "results" / "report.html"
    report.parent.mkdir()
    report.write_text("earlier")
    return report


def test_a_second_start_anew_deletes_nothing_while_the_first_measures(tmp_path: Path) -> None:
    report = earlier(tmp_path)
    state = tmp_path / "state" / folder_of(tmp_path / "results")

    with Store(state).lock():
        second = comparison(tmp_path, *LOAD, "--rates", "3", "--restart")

    assert second.returncode == 1, second.stdout + second.stderr
    assert "another pdctl" in second.stdout + second.stderr
    assert report.read_text() == "earlier"


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ("vllm-cpu", "Docker does not answer (No such file or directory): start it, or do without containers"),
        ("vllm", "this machine cannot run 2 combined, disagg 1P1D"),
    ],
)
def test_a_machine_that_can_measure_nothing_keeps_what_was_measured_before(
    tmp_path: Path, engine: str, sentence: str
) -> None:
    report = earlier(tmp_path)
    # no vLLM in this Python, and no Docker behind this address
    unfit = {"ENGINE_PYTHON": sys.executable, "DOCKER_HOST": "unix:///nowhere/docker.sock", "MODEL": "some/model"}
    env = environment(tmp_path / "state", **unfit)
    words = ("compare", "--engine", engine, "--gpus", "0,1", *LOAD, "--rates", "3", "--restart", "--out", "results")

    refused = pdctl(*words, env=env, cwd=tmp_path, timeout=LONGEST_S)

    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert sentence in " ".join((refused.stdout + refused.stderr).split())
    assert report.read_text() == "earlier"


def test_two_at_once_on_one_machine_do_not_meet(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    # Of one user, and with results of the same name.
    running = [started(folder, *LOAD, "--rates", "3", "--no-report", state=tmp_path / "state") for folder in folders]
    outputs = [process.communicate(timeout=110)[0] for process in running]

    for folder, process, output in zip(folders, running, outputs, strict=True):
        assert process.returncode == 0, output
        for topology, name in FOLDERS.items():
            run = folder / "results" / name / "256x8-rate3-seed5"
            served = {
                record.stages.decode_instance
                for record in read_lines(run / REQUESTS, RequestRecord)
                if record.stages is not None
            }
            expected = {"combined-0", "combined-1"} if topology is Topology.COMBINED else {"decode-0"}
            assert served == expected
