"""What the monitor costs its host: CPU and memory of `pd-monitor` reading 8 GPUs, over the C library of the tests.

    python benchmarks/monitor/cost.py [--gpus 8] [--interval 0.1] [--pairs 4] [--seconds 10]

Windows without a recording (1 s between samples) and with one (0.1 s) alternate in one process, so that a change of the
machine's speed affects both. CPU is the scheduler's count over all threads of the process, in percent of one core, and memory its peak.
The library's answers are instant and its arithmetic is counted in, so this is the cost of the monitor's own code. A real
driver's calls take milliseconds, in which the process mostly waits: `pd_exporter_call_seconds` has those.

Exit status 1 if the limit (1% of a core, 60 MB) is passed.
"""

# ruff: noqa: INP001, T201 - a script, and it prints
import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pd_contracts.http_call import call

ROOT = Path(__file__).parents[2]
CPU_LIMIT_PERCENT = 1.0
MEMORY_LIMIT_MB = 60.0


def build(folder: Path) -> None:
    """Compile the tests' fake library into `folder`."""
    source, library = ROOT / "tests/support/fake_nvml.c", folder / "libnvidia-ml.so.1"
    options = ["-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *options, "-o", str(library), str(source), "-lm"], check=True)


class Process:
    """A monitor over the fake library."""

    def __init__(self, folder: Path, gpus: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = int(server.getsockname()[1])
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_GPUS": str(gpus)}
        environment["LOG_LEVEL"] = "WARNING"
        # The image holds compiled modules; compiling the 330 kB of nvidia-ml-py at the start would be most of the peak.
        environment |= {"PYTHONPYCACHEPREFIX": str(folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
        subprocess.run([sys.executable, "-c", "import pd_monitor.main"], env=environment, check=True)
        environment.pop("FAKE_NVML_CONTROL", None)  # reading a file at every call would be counted in
        command = [sys.executable, "-m", "pd_monitor", "--monitor-port", str(self.port), "--bind-host", "127.0.0.1"]
        self.process = subprocess.Popen([*command, "--monitor-backend", "nvml"], env=environment)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        reply = call(f"http://127.0.0.1:{self.port}{path}", method, data, timeout_s=10)
        return reply.status, reply.body

    def wait_ready(self) -> None:
        for _ in range(100):
            try:
                if self.request("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.1)
        sys.exit("the monitor does not become ready")

    def cpu_s(self) -> float:
        """Time on a processor so far, of all threads: the scheduler's own nanoseconds, for stat's ticks are 10 ms."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(path.read_text().split()[0]) for path in threads) / 1e9

    def peak_mb(self) -> float:
        """The most memory it ever held, in 10^6 bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return kilobytes * 1024 / 1e6

    def percent(self, seconds: float) -> float:
        """CPU during the next seconds, in percent of one core."""
        begun, cpu = time.monotonic(), self.cpu_s()
        time.sleep(seconds)
        return 100 * (self.cpu_s() - cpu) / (time.monotonic() - begun)


def bare_percent(interval_s: float, seconds: float) -> float:
    """What a Python process costs here that sleeps an interval, hands nothing to a thread, and sleeps again: the floor of this machine."""
    program = (
        "import asyncio, concurrent.futures, sys, time\n"
        "async def main(interval, end):\n"
        "    loop, thread = asyncio.get_running_loop(), concurrent.futures.ThreadPoolExecutor(1)\n"
        "    await loop.run_in_executor(thread, time.monotonic)\n"
        "    begun, cpu = time.monotonic(), time.process_time()\n"
        "    while time.monotonic() - begun < end:\n"
        "        await asyncio.sleep(interval)\n"
        "        await loop.run_in_executor(thread, time.monotonic)\n"
        "    print(100 * (time.process_time() - cpu) / (time.monotonic() - begun))\n"
        "asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))\n"
    )
    command = [sys.executable, "-c", program, str(interval_s), str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(monitor: Process, interval_s: float, pairs: int, seconds: float) -> dict[str, Any]:
    """Alternate windows; the recordings are fetched outside of them."""
    off, on, samples = [], [], 0
    for number in range(pairs):
        off.append(monitor.percent(seconds))
        _, answer = monitor.request("POST", "/recordings", {"name": str(number), "interval_s": interval_s})
        on.append(monitor.percent(seconds))
        _, body = monitor.request("DELETE", f"/recordings/{json.loads(answer)['id']}")
        samples += body.count(b"\n") - 1
    extra = [b - a for a, b in zip(off, on, strict=True)]
    return {
        "percent_of_a_core_bare": bare_percent(interval_s, seconds),
        "percent_of_a_core_off": off,
        "percent_of_a_core_on": on,
        "mean_off": statistics.mean(off),
        "mean_on": statistics.mean(on),
        "mean_extra": statistics.mean(extra),
        "stdev_extra": statistics.stdev(extra) if len(extra) > 1 else None,
        "peak_mb": monitor.peak_mb(),
        "samples": samples,
        "wanted_samples_per_gpu": pairs * seconds / interval_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU and memory of pd-monitor over the fake NVML")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between samples while recording")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a window")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        monitor = Process(Path(name), options.gpus)
        try:
            monitor.wait_ready()
            monitor.percent(2)  # imports and first readings are over
            result = measure(monitor, options.interval, options.pairs, options.seconds)
        finally:
            monitor.process.terminate()
            monitor.process.wait(10)
    result |= {"gpus": options.gpus, "interval_s": options.interval, "seconds": options.seconds}
    result |= {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    good = result["mean_on"] < CPU_LIMIT_PERCENT and result["peak_mb"] < MEMORY_LIMIT_MB
    print(json.dumps(result | {"within_limits": good}, indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
