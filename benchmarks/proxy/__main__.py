"""What a proxy costs: CPU per relayed chunk, CPU per request, added lag and errors, of nginx, vllm-router and this one in one run.

The proxy has one core for itself, engines and clients share another one. CPU time is the process's own, so other work on the
machine changes it little; lags are not to be believed on a busy machine. Every figure is the median of `--rounds` rounds, in
each of which all are measured in turn.
"""

# ruff: noqa: INP001  a script

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from targets import CORE_REST, HERE, PRIORITY, ROUTER, Target, pinned, prefer, router, running

NAMES = (
    "direct",
    "nginx",
    "vllm-router",
    "pd-proxy",
    "vllm-router, 2 legs",
    "pd-proxy, 2 legs",
    "pd-proxy, 2 legs, through Hypercorn",
)
COLUMNS = (
    ("cpu_chunk_us", "CPU per chunk, µs", "cpu_chunk_ratio"),
    ("cpu_request_ms", "CPU per request at 300/s, ms", "cpu_request_ratio"),
    ("cpu_busy_request_ms", "CPU per request without pause, ms", "cpu_busy_request_ratio"),
    ("sleeps_request", "sleeps per request at 300/s", ""),
    ("kilo_chunk", "thousand instructions per chunk", "kilo_chunk_ratio"),
    ("kilo_request", "thousand instructions per request", "kilo_request_ratio"),
    ("lag_p50_ms", "added lag p50, ms", ""),
    ("lag_p99_ms", "added lag p99, ms", ""),
    ("many_errors", "errors", ""),
)


def load(target: Target, *options: str, realtime: bool = False) -> dict[str, Any]:
    """Run a load; returns its result with the CPU seconds that the proxy used between its two marks, and how often it slept."""
    words = [sys.executable, str(HERE / "load.py"), *options, "--port", str(target.port), "--path", target.path]
    marks: dict[str, tuple[float, int]] = {}
    result: dict[str, Any] = {}
    with subprocess.Popen(pinned(CORE_REST, words), stdout=subprocess.PIPE, text=True) as process:
        for pid in (process.pid, *target.pids()) if realtime else ():
            prefer(pid, on=True)
        for line in process.stdout or ():
            said = json.loads(line)
            if said["word"] == "result":
                result = said
            if said["word"] != "result" and target.pid is not None:
                marks[said["word"]] = target.used(), target.sleeps()
    for pid in target.pids() if realtime else ():
        prefer(pid, on=False)
    if not result:
        msg = f"the load on {target.name} ended without a result"
        raise RuntimeError(msg)
    used, sleeps = (end - begin for begin, end in zip(marks["begin"], marks["end"], strict=True)) if marks else (0.0, 0)
    return {**result, "used": used, "sleeps": sleeps}


def measure(target: Target, options: argparse.Namespace) -> dict[str, float]:
    seconds = ["--seconds", str(options.seconds)]
    chunks = load(target, "streams", "--count", "256", "--pace", "20", *seconds, realtime=options.realtime)
    requests = load(
        target, "requests", "--count", "16", "--rate", str(options.rate), *seconds, realtime=options.realtime
    )
    busy = load(target, "requests", "--count", "16", *seconds)
    found = {
        "cpu_chunk_us": chunks["used"] / max(1, chunks["chunks"]) * 1e6,
        "cpu_request_ms": requests["used"] / max(1, requests["requests"]) * 1e3,
        "cpu_busy_request_ms": busy["used"] / max(1, busy["requests"]) * 1e3,
        "sleeps_request": requests["sleeps"] / max(1, requests["requests"]),
        "chunks_a_read": chunks["chunks"] / max(1, chunks["reads"]),
        "lag_p50_ms": chunks["lag_p50_ms"],
        "lag_p99_ms": chunks["lag_p99_ms"],
        "chunks_per_s": chunks["chunks"] / options.seconds,
        "requests_per_s": requests["requests"] / options.seconds,
        "busy_requests_per_s": busy["requests"] / options.seconds,
        "errors": float(chunks["errors"] + requests["errors"] + busy["errors"]),
    }
    if options.many:
        many = load(target, "streams", "--count", str(options.many), "--pace", "1000", *seconds)
        found |= {"many_errors": many["errors"] + options.many - many["finished"], "many_rss_mb": target.rss_mb()}
        found["many_lag_p99_ms"] = many["lag_p99_ms"]
    return found


def count(target: Target, options: argparse.Namespace) -> dict[str, float]:
    """Thousands of instructions per chunk and per request, less what an idle program uses in the same time.

    A program under valgrind is some 50 times slower, so the loads are small.
    """
    seconds = ["--seconds", str(options.seconds)]
    chunks = load(target, "streams", "--count", "8", "--pace", "100", *seconds)
    requests = load(target, "requests", "--count", "1", *seconds)
    idle = target.used()
    time.sleep(options.seconds)
    idle = target.used() - idle
    return {
        "kilo_chunk": (chunks["used"] - idle) / max(1, chunks["chunks"]) / 1e3,
        "kilo_request": (requests["used"] - idle) / max(1, requests["requests"]) / 1e3,
        "kilo_idle_s": idle / options.seconds / 1e3,
        "chunks": chunks["chunks"],
        "requests": requests["requests"],
        "errors": float(chunks["errors"] + requests["errors"]),
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of every figure; errors add up."""
    found = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    return found | {key: sum(one[key] for one in rounds) for key in found if key.endswith("errors")}


def compared(results: dict[str, dict[str, float]]) -> None:
    """Add what is relative to others: lag to none in between, CPU to vllm-router."""
    for name, one in results.items():
        for key in ("lag_p50_ms", "lag_p99_ms") if "lag_p50_ms" in one else ():
            one["own_" + key] = one[key]
        if "direct" in results and name != "direct":
            for key in ("lag_p50_ms", "lag_p99_ms") if "lag_p50_ms" in one else ():
                one[key] -= results["direct"]["own_" + key]
        if "vllm-router" in results and name != "direct":
            for key, _, ratio in COLUMNS:
                if ratio and key in one:
                    one[ratio] = one[key] / results["vllm-router"][key]


def table(results: dict[str, dict[str, float]], many: int) -> Iterator[str]:
    columns = [column for column in COLUMNS if any(column[0] in one for one in results.values())]
    heads = [f"errors at {many} streams" if key == "many_errors" else label for key, label, _ in columns]
    yield "| | " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * len(heads)
    for name, one in results.items():
        cells = []
        for key, _, ratio in columns:
            untold = name == "direct" and key.startswith(("cpu", "kilo", "sleeps"))
            text = "" if key not in one or untold else f"{one[key]:.3g}"
            if key == "many_errors" and key in one:
                text = str(int(one[key]))
            cells.append(text + (f" ({one[ratio]:.2f} ×)" if ratio in one else ""))
        yield f"| {name} | " + " | ".join(cells) + " |"


def machine(python: str) -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": python,
        "uvloop": version("uvloop"),
        "load_average": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def version_of(python: str) -> str:
    """The version of an interpreter."""
    words = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Measure, print, and write to a folder if one is named."""
    parser = argparse.ArgumentParser(prog="bench-proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measured window")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second of the paced load")
    parser.add_argument(
        "--realtime", action="store_true", help="run what is paced before other work on the machine; needs root"
    )
    parser.add_argument("--many", type=int, default=4000, help="streams at once in the last load; 0: without it")
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions by valgrind instead, on however busy a machine"
    )
    parser.add_argument(
        "--python",
        default="",
        help="an interpreter for this proxy, of the same version as this one but built otherwise; packages are this one's",
    )
    parser.add_argument("--only", default="", help="part of these, separated by semicolons: " + "; ".join(NAMES))
    parser.add_argument("--out", type=Path, help="folder for table and JSON")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.stderr.write("bench-proxy: needs two cores, one of them for the proxy alone\n")
        return 2
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY + 1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    wanted = [name.strip() for name in options.only.split(";") if name.strip()]
    names = [name for name in NAMES if not wanted or name in wanted]
    if shutil.which("nginx") is None and "nginx" in names:
        names.remove("nginx")
        print("nginx is not installed, so it is left out (Debian: nginx-light)")
    if options.instructions:
        names = [name for name in names if name not in ("direct", "nginx")]
        if shutil.which("vgdb") is None:
            sys.stderr.write("bench-proxy: --instructions needs valgrind\n")
            return 2
    measured = count if options.instructions else measure
    with tempfile.TemporaryDirectory(prefix="bench-proxy-") as folder:
        program = router(HERE.parents[1] / ".tools" / "bench-router")
        if program is None:
            names = [name for name in names if not name.startswith("vllm-router")]
            print(f"{ROUTER} could not be installed, so it is left out")
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        before = machine(version_of(options.python or sys.executable))
        for number in range(options.rounds):
            for name in names:
                with running(
                    name, Path(folder), program, counted=options.instructions, python=options.python
                ) as target:
                    rounds[name].append(measured(target, options))
                print(f"round {number + 1}: {name}: {json.dumps(rounds[name][-1])}", file=sys.stderr)
    results = {name: medians(found) for name, found in rounds.items()}
    compared(results)
    text = "\n".join(table(results, options.many))
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        document = {
            "machine": before,
            "router": ROUTER,
            "options": {"rounds": options.rounds, "seconds": options.seconds},
        }
        document |= {"results": results, "rounds": rounds}
        (options.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
        (options.out / "table.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
