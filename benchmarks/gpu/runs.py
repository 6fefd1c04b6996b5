# ruff: noqa: INP001, T201 - scripts, not a package
"""Runs of the load generator, topology by topology, until they are all there or the time is up."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from engines import MODEL_NAME, last_words, port
from fanout import Fanout
from plan import Plan, Point

from pd_contracts.records import MANIFEST, Manifest, read_json
from pd_control.client import proxy_stats

MONITOR_PORT = 19835
MONITOR = f"http://127.0.0.1:{MONITOR_PORT}"
DISCOVERY = (
    30100  # where engines ping; the proxy of lane n listens on DISCOVERY + 1 + n, and for clients on CLIENTS + n
)
CLIENTS = 10101
ADMITTED_S = 30.0
UNUSABLE = 2  # the load generator's exit status for options or a server that it cannot use
OVERHEAD_S = 6.0  # of a run: its process, its warm-up, and the answers that are still to come after the last request
WARMUP = ["--output-tokens", "16", "--requests", "24", "--rate", "8", "--duration", "30", "--overwrite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What is measured and where its records go. `ends` is monotonic seconds; `faster` divides all durations, to rehearse.

    `clients` is the number of processes of the load generator, for each lane.
    """

    plan: Plan
    work: Path
    out: Path
    ends: float
    simulated: bool = False
    faster: float = 1.0
    clients: int = 1
    left: list[Point] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)

    def all(self) -> bool:
        """Measure what is not there yet; True if nothing is left."""
        with ExitStack() as stack:
            lanes = max(map(len, self.plan.phases))
            stack.enter_context(Fanout(DISCOVERY, [DISCOVERY + 1 + lane for lane in range(lanes)]))
            stack.enter_context(self._process("monitor", "pd_monitor", **self._boards()))
            for seed in self.plan.seeds:
                for phase in self.plan.phases:
                    self._phase(phase, seed)
        for topology, count in Counter(point.topology for point in self.left).items():
            print(f"not done: {count} runs of {topology}")
        return not self.left

    def _phase(self, lanes: list[list[str]], seed: int) -> None:
        threads = [
            threading.Thread(target=self._lane, args=(number, topologies, seed))
            for number, topologies in enumerate(lanes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _lane(self, lane: int, topologies: list[str], seed: int) -> None:
        for topology in topologies:
            todo = [point for point in self.plan.points(topology, seed) if not done(self.out / point.folder)]
            if not todo or not self._time_for(todo[0]):
                self.left.extend(todo)
                continue
            with self._serving(topology, lane) as url:
                for point in todo:
                    if url is not None and self._time_for(point):
                        self._measure(point, url)
                    else:
                        self.left.append(point)

    def _time_for(self, point: Point) -> bool:
        # What the load generator refuses once it refuses at every point, and a rented machine's minutes would be gone.
        return not self.broken.is_set() and time.monotonic() + point.seconds / self.faster + OVERHEAD_S < self.ends

    @contextmanager
    def _serving(self, topology: str, lane: int) -> Iterator[str | None]:
        """A proxy that admits this topology's engines alone, warmed up; None if they are not admitted in time."""
        members, name = self.plan.members(topology), f"proxy-{topology}"
        variables = {
            "HTTP_PROXY_PORT": str(CLIENTS + lane),
            "PROXY_PORT": str(DISCOVERY + 1 + lane),
            "BIND_HOST": "127.0.0.1",
            "PING_NETWORKS": ",".join(f"{engine.address}/32" for engine in members),
            "CANARY": "off",  # dummy weights have no fixed answers
        }
        url = f"http://127.0.0.1:{CLIENTS + lane}"
        with self._process(name, "pd_proxy", **variables):
            deadline = time.monotonic() + ADMITTED_S
            while not _admitted(url, len(members)):
                if time.monotonic() > deadline:
                    print(f"{topology}: engines were not admitted\n{last_words(self.work / f'{name}.log')}", flush=True)
                    yield None
                    return
                time.sleep(0.2)
            description = self.plan.deployment(
                topology, simulated=self.simulated, software=self._software(), model=MODEL_NAME
            )
            self._description(topology).write_bytes(msgspec.json.encode(description))
            longest = str(max(shape.input_tokens for shape in self.plan.shapes))
            folder = str(self.work / "warmup" / topology)
            self._loadgen(url, topology, "--input-tokens", longest, *WARMUP, "--out", folder)
            yield url

    def _measure(self, point: Point, url: str) -> None:
        size = point.shape
        arguments = ["--input-tokens", str(size.input_tokens), "--output-tokens", str(size.output_tokens)]
        arguments += ["--rate", str(point.rate_per_gpu * self.plan.gpus(point.topology)), "--seed", str(point.seed)]
        arguments += ["--duration", str(point.seconds / self.faster), "--warmup", "4", "--idle", "1"]
        arguments += ["--goodput", size.goodput, "--deployment", str(self._description(point.topology)), "--overwrite"]
        arguments += ["--monitor", MONITOR, "--out", str(self.out / point.folder)]
        began = time.monotonic()
        status = self._loadgen(url, point.topology, *arguments)
        print(row(point, self.out / point.folder, status, time.monotonic() - began), flush=True)
        if status == UNUSABLE:
            print(last_words(self.work / f"loadgen-{point.topology}.log"), flush=True)
            self.broken.set()

    def _loadgen(self, url: str, topology: str, *arguments: str) -> int:
        command = [sys.executable, "-m", "pd_loadgen", "run", "--url", url, "--timeout", "90", *arguments]
        if self.clients > 1:
            command += ["--processes", str(self.clients)]
        with (self.work / f"loadgen-{topology}.log").open("ab") as log:
            return subprocess.run(command, stdout=log, stderr=log, check=False).returncode

    def _description(self, topology: str) -> Path:
        return self.work / f"{topology}.json"

    def _boards(self) -> dict[str, str]:
        listening = {"MONITOR_PORT": str(MONITOR_PORT)}
        if not self.simulated:
            return {**listening, "MONITOR_BACKEND": "nvml"}
        first = {engine.gpu: engine for engine in self.plan.engines}
        boards = ",".join(f"http://127.0.0.1:{port(engine)}/sim/board" for engine in first.values())
        return {**listening, "MONITOR_BACKEND": "simulated", "SIM_BOARDS": boards}

    def _software(self) -> dict[str, str]:
        found = {}
        for package in () if self.simulated else ("vllm", "torch", "nixl"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue  # not every machine has every connector
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
            found["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        return found

    @contextmanager
    def _process(self, name: str, module: str, **variables: str) -> Iterator[None]:
        command, environment = [sys.executable, "-m", module], {**os.environ, **variables}
        with (self.work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def done(folder: Path) -> bool:
    """Whether a run lies there complete."""
    path = folder / MANIFEST
    return path.exists() and read_json(path, Manifest).complete


def row(point: Point, folder: Path, status: int, took: float) -> str:
    """A line of the table; `status` is the load generator's."""
    try:
        numbers = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        return f"{point.folder:<42} status {status}, no summary"
    keys = [f"{quantile}_{name}_ms" for name in ("ttft", "tpot") for quantile in ("median", "p99")]
    shown = " ".join(f"{key} {numbers[key]:.1f}" for key in keys if numbers[key] is not None)
    return f"{point.folder:<42} {status} n {numbers['completed']} failed {numbers['failed']} {shown} ({took:.0f} s)"


def _admitted(url: str, count: int) -> bool:
    stats = proxy_stats(url)
    return stats is not None and sum(instance.state == "ready" for instance in stats.instances) == count
