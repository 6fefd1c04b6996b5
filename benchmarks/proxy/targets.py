"""What is compared: nothing at all, nginx, vllm-router and this proxy; how each is started, and what it has used of the CPU."""

# ruff: noqa: INP001  a script that starts programs

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pd_contracts.free_ports import free_ports

HERE = Path(__file__).parent
ROUTER = "vllm-router==0.1.17"
CORE_PROXY, CORE_REST = 1, 0
PRIORITY = 5
TOTALS = re.compile(r"^totals: ([0-9]+)$", re.MULTILINE)
SLEEPS = re.compile(r"^voluntary_ctxt_switches:\s*([0-9]+)$", re.MULTILINE)
# Starts this proxy under an interpreter that has not its packages.
START = "import site, sys; site.addsitedir({packages!r}); from pd_proxy.main import main; sys.exit(main())"

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 10000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


@dataclass
class Target:
    """One way to the engines, running; `pid` is None if there is nothing in between."""

    name: str
    port: int
    path: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    pid: int | None = None
    counts: Path | None = None  # the folder in which valgrind counts instructions, if it does

    def used(self) -> float:
        """What it has used so far: CPU seconds or, where valgrind counts, instructions outside the kernel."""
        return self.cpu_s() if self.counts is None or self.pid is None else self._instructions(self.pid, self.counts)

    @staticmethod
    def _instructions(pid: int, counts: Path) -> float:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            words = ["vgdb", f"--vgdb-prefix={counts}/vgdb", f"--pid={process.pid}", "dump", "now"]
            subprocess.run(words, check=True, capture_output=True)
        # Each dump counts from the one before it; the file without a number is written at the end.
        dumps = [path.read_text(errors="replace") for path in counts.glob("callgrind.*.*")]
        return float(sum(int(total) for dump in dumps for total in TOTALS.findall(dump)))

    def sleeps(self) -> int:
        """How often its threads have gone to sleep so far: the kernel's voluntary context switches."""
        if self.pid is None:
            return 0
        parent = psutil.Process(self.pid)
        return sum(_sleeps(process) for process in [parent, *parent.children(recursive=True)])

    def cpu_s(self) -> float:
        """CPU time of the process and its children so far, s, to the nanosecond where the kernel tells."""
        if self.pid is None:
            return 0.0
        parent = psutil.Process(self.pid)
        return sum(_cpu_s(process) for process in [parent, *parent.children(recursive=True)])

    def pids(self) -> list[int]:
        """All its processes and the engines'."""
        children = (psutil.Process(one.pid).children(recursive=True) for one in self.processes)
        return [*(one.pid for one in self.processes), *(child.pid for family in children for child in family)]

    def rss_mb(self) -> float:
        """Resident memory, MB."""
        if self.pid is None:
            return 0.0
        parent = psutil.Process(self.pid)
        return sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / 1e6


def prefer(pid: int, *, on: bool) -> None:
    """Let the kernel run a process before other work on the machine, or as everything else."""
    policy, priority = (os.SCHED_FIFO, PRIORITY) if on else (os.SCHED_OTHER, 0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))


def _cpu_s(process: psutil.Process) -> float:
    try:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        times = process.cpu_times()
        return float(times.user + times.system)


def _sleeps(process: psutil.Process) -> int:
    try:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int(SLEEPS.findall((task / "status").read_text())[0]) for task in tasks)
    except OSError:
        return int(process.num_ctx_switches().voluntary)


def pinned(core: int, words: list[str]) -> list[str]:
    """The command, kept on one core."""
    return ["taskset", "-c", str(core), *words]


def router(folder: Path) -> Path | None:
    """`vllm-router` in a place of its own, made now if need be; None if it cannot be had."""
    program = folder / "venv" / "bin" / "vllm-router"
    uv = shutil.which("uv", path=str(HERE.parents[1] / ".tools" / "bin")) or shutil.which("uv")
    if program.exists() or uv is None:
        return program if program.exists() else None
    for words in (
        ["venv", "-q", str(folder / "venv")],
        ["pip", "install", "-q", "--python", str(folder / "venv"), ROUTER],
    ):
        if subprocess.run([uv, *words], check=False).returncode:
            return None
    return program


@contextmanager
def running(
    name: str, folder: Path, program: Path | None, *, counted: bool = False, python: str = ""
) -> Iterator[Target]:
    """Start engines and one way to them, under valgrind if instructions are counted; everything is ended afterwards.

    `python` is an interpreter for this proxy other than the present one.
    """
    ports = free_ports(7)
    engines, (port, zmq, extra) = ports[:3], ports[3:6]
    # A query is all it takes to make this proxy leave a request to Hypercorn and Quart.
    target = Target(name, port, "/v1/completions" + ("?by=hypercorn" if "Hypercorn" in name else ""))
    words = [sys.executable, str(HERE / "engine.py"), "--roles", "combined,prefill,decode"]
    announced = [0, 0, 0]
    if name.startswith("pd-proxy"):
        announced = [0, zmq, zmq] if "2 legs" in name else [zmq, 0, 0]
    words += ["--ports", ",".join(map(str, engines)), "--proxy-ports", ",".join(map(str, announced))]
    log = (folder / "log.txt").open("ab")
    try:
        target.processes.append(subprocess.Popen(pinned(CORE_REST, words), stderr=log))
        command = _command(name, folder, program, engines, (port, zmq, extra), python=python)
        if command is None:
            target.port = engines[0]
        else:
            if counted:
                target.counts = Path(tempfile.mkdtemp(dir=folder))
                command = [*_callgrind(target.counts), *command]
            process = subprocess.Popen(pinned(CORE_PROXY, command), stdout=log, stderr=log)
            target.processes.append(process)
            target.pid = process.pid
        _wait_ready(target, "/ready" if name.startswith("pd-proxy") else "/health")
        yield target
    finally:
        for process in reversed(target.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


def _callgrind(folder: Path) -> list[str]:
    words = ["valgrind", "--tool=callgrind", "--trace-children=yes", f"--vgdb-prefix={folder}/vgdb"]
    return [*words, f"--callgrind-out-file={folder}/callgrind.%p"]


def _command(
    name: str, folder: Path, program: Path | None, engines: list[int], ports: tuple[int, int, int], *, python: str
) -> list[str] | None:
    port, zmq, extra = ports
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    if name == "direct":
        return None
    if name == "nginx":
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, engine=engines[0], port=port))
        return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    if name.startswith("vllm-router"):
        words = [str(program), "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(extra)]
        words += ["--policy", "round_robin", "--worker-startup-check-interval", "1"]
        if "2 legs" in name:
            words += ["--vllm-pd-disaggregation", "--kv-connector", "nixl", "--prefill", urls[1], "--decode", urls[2]]
            return words
        return [*words, "--worker-urls", urls[0]]
    # Without `site`, so that packages of its own do not come first.
    start = [python, "-S", "-c", START.format(packages=sysconfig.get_path("purelib"))]
    if not python:
        start = [sys.executable, "-m", "pd_proxy"]
    words = [*start, "--http-proxy-port", str(port), "--proxy-port", str(zmq)]
    return [*words, "--bind-host", "127.0.0.1", "--canary", "off", "--health-interval-s", "1"]


def _wait_ready(target: Target, path: str) -> None:
    for _ in range(400 if target.counts is None else 4000):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{target.port}{path}", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        if any(process.poll() is not None for process in target.processes):
            break
    msg = f"{target.name} did not start"
    raise RuntimeError(msg)
