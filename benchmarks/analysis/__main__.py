# ruff: noqa: INP001 - scripts, not a package
"""Time and memory of `pd-analysis report` against the size of a run: `make bench-analysis`, or `python benchmarks/analysis --help`.

Each size is measured in a process of its own, so that its peak of memory is its own. Records are written outside the measurement
and removed afterwards: a request of 128 chunks takes about 2.5 kB.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generate import write_run

SIZES = (1_000, 10_000, 100_000, 1_000_000)
GOAL_S, GOAL_GB = 60.0, 2.0  # for a million requests of 128 chunks, on two cores


def main() -> int:
    """Print a row per size; the exit status is 1 if a size takes longer or more memory than the goal of the largest."""
    parser = argparse.ArgumentParser(prog="bench-analysis", description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="REQUESTS")
    parser.add_argument("--chunks", type=int, default=128, help="token chunks per request (default 128)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where records are written and removed again")
    options = parser.parse_args()
    print(f"pd-analysis report, {options.chunks} chunks per request, {os.cpu_count()} cores")
    print(f"{'requests':>10} {'records':>10} {'wall':>9} {'CPU':>9} {'peak':>9}")
    missed = False
    for size in options.sizes:
        wall, cpu, peak, megabytes = measure(size, options.chunks, Path(options.folder))
        print(f"{size:>10,} {megabytes:>7,.0f} MB {wall:>7.1f} s {cpu:>7.1f} s {peak:>6.2f} GB", flush=True)
        missed = missed or wall > GOAL_S or peak > GOAL_GB
    return int(missed)


def measure(size: int, chunks: int, root: Path) -> tuple[float, float, float, float]:
    """Wall seconds, processor seconds, peak memory in GB and size of the records in MB of one report."""
    folder = Path(tempfile.mkdtemp(prefix="pdstack-bench-", dir=root))
    try:
        run = write_run(folder / "run", requests=size, chunks=chunks)
        megabytes = (run / "requests.jsonl").stat().st_size / 1e6
        command = [sys.executable, "-m", "pd_analysis", "report", str(run), "--out", str(folder / "report")]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            msg = f"pd-analysis ended with status {process.returncode}"
            raise SystemExit(msg)
        return wall, usage.ru_utime + usage.ru_stime, peak_gb(usage), megabytes
    finally:
        shutil.rmtree(folder)


def peak_gb(usage: resource.struct_rusage) -> float:
    """Resident memory at its highest; Linux counts it in KiB."""
    return usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    sys.exit(main())
