"""`pdctl demo` from end to end with a load of a few seconds."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.control import alive, environment, pdctl, until

from pd_contracts.names import SIMULATED_ENGINE, Topology
from pd_contracts.records import (
    GPU,
    MANIFEST,
    REQUESTS,
    SUMMARY,
    GpuHeader,
    GpuSample,
    Manifest,
    RequestRecord,
    read_json,
    read_lines,
)
from pd_control.supervision.state import Store

TINY = ("--rate", "6", "--duration", "3", "--input-tokens", "256", "--output-tokens", "8", "--seed", "5")


class Demo:
    """A finished demonstration."""

    def __init__(self, folder: Path, result: subprocess.CompletedProcess[str]) -> None:
        self.out = folder / "results"
        self.result = result

    def manifest(self, topology: Topology) -> Manifest:
        return read_json(self.out / topology / MANIFEST, Manifest)


@pytest.fixture(name="demo", scope="module")
def _demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    # A busy test machine may make the client late; what is looked at here does not depend on that.
    env = environment(folder / "state", LOADGEN_LAG_LIMIT_MS="1000", LOADGEN_IDLE="0.5")
    # The proxy's port is busy, as on a machine where a deployment runs: the demonstration takes another one.
    with socket.create_server(("127.0.0.1", int(env["HTTP_PROXY_PORT"]))):
        return Demo(folder, pdctl("demo", *TINY, "--out", "results", env=env, cwd=folder, timeout=110))


def test_it_ends_well_and_names_the_report_last(demo: Demo) -> None:
    assert demo.result.returncode == 0, demo.result.stdout + demo.result.stderr
    assert demo.result.stdout.rstrip().splitlines()[-1] == "results/report.html"


def test_both_topologies_were_offered_the_same_schedule(demo: Demo) -> None:
    disagg, combined = (demo.manifest(topology) for topology in Topology)

    assert disagg.schedule_hash == combined.schedule_hash
    assert disagg.workload == combined.workload
    assert disagg.workload.seed == 5
    assert disagg.schedule_hash in demo.result.stdout


@pytest.mark.parametrize("topology", Topology)
def test_each_run_is_whole_and_says_what_served_it(demo: Demo, topology: Topology) -> None:
    manifest = demo.manifest(topology)

    assert manifest.complete
    assert manifest.client is not None
    deployment = manifest.deployment
    assert (deployment.topology, deployment.gpus, deployment.simulated) == (topology, 2, True)
    assert {engine.engine for engine in deployment.engines} == {SIMULATED_ENGINE}
    names = {Topology.DISAGG: ["decode-0", "prefill-0"], Topology.COMBINED: ["combined-0", "combined-1"]}
    assert sorted(engine.name for engine in deployment.engines) == names[topology]
    assert sorted(gpu for engine in deployment.engines for gpu in engine.gpus) == [0, 1]


@pytest.mark.parametrize("topology", Topology)
def test_every_request_was_served(demo: Demo, topology: Topology) -> None:
    requests = list(read_lines(demo.out / topology / REQUESTS, RequestRecord))

    measured = [request for request in requests if not request.warmup]
    assert len(measured) == demo.manifest(topology).workload.requests
    assert [request.error for request in requests if request.error] == []
    assert {request.output_tokens for request in measured} == {8}
    stages = [request.stages for request in measured]
    assert all(stage is not None and bool(stage.prefill) == (topology is Topology.DISAGG) for stage in stages)
    assert (demo.out / topology / SUMMARY).exists()


@pytest.mark.parametrize("topology", Topology)
def test_power_was_recorded_by_role(demo: Demo, topology: Topology) -> None:
    path = demo.out / topology / GPU
    header = next(iter(read_lines(path, GpuHeader)))
    samples = list(read_lines(path, GpuSample, skip=1))

    assert header.simulated
    roles = {Topology.DISAGG: {0: "prefill", 1: "decode"}, Topology.COMBINED: {0: "combined", 1: "combined"}}
    assert {info.index: info.role for info in header.gpus} == roles[topology]
    window = demo.manifest(topology).window
    assert window is not None
    inside = [sample for sample in samples if window[0] <= sample.t <= window[1]]
    assert len(inside) > 20
    assert all(sample.energy_mj for sample in inside)


def test_the_report_is_there_and_says_simulated(demo: Demo) -> None:
    html = (demo.out / "report.html").read_text()
    markdown = (demo.out / "report.md").read_text()

    for text in (html, markdown, demo.result.stdout):
        assert "SIMULATED" in text
    assert list((demo.out / "plots").glob("*.png"))


def test_nothing_is_left_running(demo: Demo) -> None:
    assert processes_with(f"STATE_DIR={demo.out.parent / 'state'}") == []


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


def test_a_killed_demonstration_takes_everything_with_it(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    command = [sys.executable, "-m", "pd_control", "demo", *TINY]
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL) as demo:
        store = Store(tmp_path / "state" / "demo")
        until(lambda: (state := store.load()) is not None and len(state.processes) == 4)
        demo.kill()

    until(lambda: processes_with(f"STATE_DIR={tmp_path / 'state'}") == [])


def test_what_is_no_run_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "out" / "disagg" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")

    result = pdctl("demo", *TINY, "--out", "out", env=environment(tmp_path / "state"), cwd=tmp_path)

    assert result.returncode == 1
    assert "choose another --out" in result.stdout
    assert precious.read_text() == "years of work"
