"""Running a monitor in a test: in this process over a given back end, or as a process of its own over the fake NVML."""

import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from support.waiting import until

from pd_contracts.free_ports import free_port
from pd_contracts.http_call import CallError, call
from pd_contracts.records import GpuHeader, GpuSample
from pd_monitor.app import Monitor, make_app
from pd_monitor.reading import Backend
from pd_monitor.settings import Settings

Client = TestClient[web.Request, web.Application]

# Keys of a series: its name and its labels, without the exporter's own `_created` stamps.
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextlib.asynccontextmanager
async def running(backend: Backend, settings: Settings | None = None) -> AsyncIterator[tuple[Client, Monitor]]:
    """A monitor in this process that has taken its first sample."""
    monitor = Monitor(settings or Settings(monitor_interval_s=0.05), backend)
    sampling = asyncio.create_task(monitor.sampler.run())
    try:
        async with TestClient(TestServer(make_app(monitor))) as client:
            assert await monitor.sampler.tick_begun_after(0, 5)
            yield client, monitor
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling
        await monitor.close()


def series(exposition: str) -> Series:
    """Every sample of a `/metrics` page; fails if Prometheus could not read it."""
    found: Series = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def pick(page: Series, name: str, **labels: str) -> dict[str, float]:
    """The values of one metric whose labels include the given ones, by GPU."""
    wanted = labels.items()
    return {
        dict(keys).get("gpu", ""): value
        for (n, keys), value in page.items()
        if n == name and wanted <= dict(keys).items()
    }


def recorded(body: bytes) -> tuple[GpuHeader, list[GpuSample]]:
    """What `DELETE /recordings/{id}` answered."""
    header, *lines = body.splitlines()
    return msgspec.json.decode(header, type=GpuHeader), [msgspec.json.decode(line, type=GpuSample) for line in lines]


class Parameters(msgspec.Struct, frozen=True):
    """What h200.json says of a real board: measured in its capture, and assumed where the capture shows nothing."""

    idle_w: float
    busy_w: float
    energy_update_s: float
    power_offset_s: float
    instant_window_s: float
    average_window_s: float
    power_limit_w: float
    power_cap_min_w: float
    memory_power_w: float
    sm_clock_mhz: int
    idle_sm_clock_mhz: int
    memory_clock_mhz: int

    def options(self) -> list[str]:
        """For the compiler."""
        names = {
            "IDLE_W": self.idle_w,
            "BUSY_W": self.busy_w,
            "UPDATE_S": self.energy_update_s,
            "POWER_OFFSET_S": self.power_offset_s,
            "INSTANT_WINDOW_S": self.instant_window_s,
            "AVERAGE_WINDOW_S": self.average_window_s,
            "LIMIT_W": int(self.power_limit_w),
            "LIMIT_MIN_W": int(self.power_cap_min_w),
            "MEMORY_W": self.memory_power_w,
            "SM_MHZ": self.sm_clock_mhz,
            "SM_IDLE_MHZ": self.idle_sm_clock_mhz,
            "MEMORY_MHZ": self.memory_clock_mhz,
        }
        return [f"-D{name}={value}" for name, value in names.items()]


def read_parameters() -> Parameters:
    file = json.loads(Path(__file__).with_name("h200.json").read_text())
    return msgspec.convert({**file["measured"], **file["assumed"]}, Parameters)


H200 = read_parameters()


@dataclass(frozen=True)
class FakeTruth:
    """What fake_nvml.c makes true, written a second time: boards whose power is a square wave of CLOCK_MONOTONIC."""

    board: int
    half_period_s: float = 0.5

    @property
    def idle_w(self) -> float:
        return H200.idle_w + 10 * self.board

    @property
    def busy_w(self) -> float:
        return H200.busy_w + 20 * self.board

    def joules(self, begun: float, ended: float) -> float:
        """Energy between two moments: idle power all the time, and the rest of busy power while busy."""
        return self.idle_w * (ended - begun) + (self.busy_w - self.idle_w) * (self._busy_s(ended) - self._busy_s(begun))

    def mean_w(self, ended: float, window_s: float) -> float:
        return self.joules(ended - window_s, ended) / window_s

    def _busy_s(self, t: float) -> float:
        whole = math.floor(t / (2 * self.half_period_s))
        return whole * self.half_period_s + min(t - whole * 2 * self.half_period_s, self.half_period_s)


def build_library(folder: Path, source: str, name: str, options: Sequence[str] = ()) -> Path:
    """Compile one of the C libraries beside this file into `folder`; skips where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip(f"no C compiler to build the fake {name} with")
    library = folder / name
    path = Path(__file__).with_name(source)
    always = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
    command = [compiler, *always, *options, "-o", str(library), str(path), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def build_fake_nvml(folder: Path) -> Path:
    """The library with the numbers of a real board."""
    return build_library(folder, "fake_nvml.c", "libnvidia-ml.so.1", H200.options())


class MonitorProcess:
    """`pd-monitor` as users start it, with what it says over HTTP."""

    def __init__(self, environment: Mapping[str, str], port: int | None = None) -> None:
        self.port = port or free_port()
        clean = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "TMPDIR", "LANG"}}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pd_monitor", "--monitor-port", str(self.port), "--bind-host", "127.0.0.1"],
            env=clean | dict(environment),
            stderr=subprocess.PIPE,
            text=True,
        )

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        reply = call(f"http://127.0.0.1:{self.port}{path}", method, data)
        return reply.status, reply.body

    def page(self) -> Series:
        status, body = self.request("GET", "/metrics")
        assert status == 200
        return series(body.decode())

    def record(self, **body: Any) -> str:
        status, answer = self.request("POST", "/recordings", body)
        assert status == 201, answer
        return str(json.loads(answer)["id"])

    def fetch(self, id_: str) -> tuple[GpuHeader, list[GpuSample]]:
        status, answer = self.request("DELETE", f"/recordings/{id_}")
        assert status == 200, answer
        return recorded(answer)

    def wait_for(self, what: Callable[[], bool], seconds: float = 30) -> None:
        """Poll until something holds; fails if the process ends before it does."""
        # It may not listen yet.
        until(what, seconds, while_=self._runs, ignoring=(CallError,))

    def _runs(self) -> bool:
        assert self._process.poll() is None, self._process.communicate()[1]
        return True

    def wait_healthy(self) -> None:
        self.wait_for(lambda: self.request("GET", "/healthz")[0] == 200)

    def wait_ready(self) -> None:
        self.wait_for(lambda: self.request("GET", "/readyz")[0] == 200)

    def wait(self) -> tuple[int, str]:
        """Wait until it ends by itself; its status and its log."""
        _, log = self._process.communicate(timeout=60)
        return self._process.returncode, log

    def stop(self) -> str:
        """End it as a container would, and give its log; fails if it ended badly."""
        self._process.send_signal(signal.SIGTERM)
        try:
            _, log = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        assert self._process.returncode == 0, log
        return log


@contextlib.contextmanager
def monitor_process(**environment: str) -> Iterator[MonitorProcess]:
    """A process that is stopped at the end, whatever the test did."""
    process = MonitorProcess(environment)
    try:
        yield process
    finally:
        process.stop()


class FaultFile:
    """The file that the fake library reads its faults from; empty at first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def fail(self, *lines: str) -> None:
        """Give it these faults instead of those it has."""
        # By rename: a process that reads it meanwhile must not see half a file.
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.path)


class ClockHost:
    """A host with the fake library whose setters work: `pd-monitor clocks` as users start it, and what it did."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "set"
        self.journal = folder / "journal" / "clocks.json"
        self.faults = FaultFile(folder / "faults")
        self.fail = self.faults.fail
        self.environment = {
            "LD_LIBRARY_PATH": str(library.parent),
            "FAKE_NVML_CONTROL": str(self.faults.path),
            "FAKE_NVML_STATE": str(self.state),
            "FAKE_NVML_JOURNAL": str(self.journal),
            "CLOCKS_STATE_DIR": str(self.journal.parent),
            "PREFILL_GPUS": "0",
            "DECODE_GPUS": "1",
            "ALLOW_CLOCK_CONTROL": "on",
        }

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        clean = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "TMPDIR", "LANG"}}
        return subprocess.Popen(
            [sys.executable, "-m", "pd_monitor", "clocks", *arguments],
            env=clean | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run it to its end: status and what it said."""
        process = self.start(*arguments, **environment)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def setters(self) -> list[str]:
        """Every setter call so far, as the library saw it."""
        log = Path(f"{self.state}.log")
        return log.read_text().splitlines() if log.exists() else []

    @property
    def now(self) -> dict[int, tuple[int, int]]:
        """Lock in MHz and limit in mW by board; 0 is unchanged."""
        if not self.state.exists():
            return {0: (0, 0), 1: (0, 0)}
        rows = [line.split() for line in self.state.read_text().splitlines()]
        return {int(row[0]): (int(row[1]), int(row[2])) for row in rows[:2]}

    def guard_of(self, process: "subprocess.Popen[str]") -> int:
        """The guard's process id."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (guard,) = [int(pid) for pid in children if "pd_monitor.clocks.guard" in _command(int(pid))]
        return guard


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
