"""How late clients stamp tokens: this client, aiohttp and httpx, in one run against a server that stamps what it writes.

This client takes part twice: as it is, with the kernel's receive stamps, and with its own clock read after each system call, as where the
kernel does not stamp. The difference is what the kernel's stamps are worth; the rest of the way to the others is the client's own speed.

Error of a chunk = the client's stamp − the server's stamp just before its write; both processes are pinned to a core of their own.
The server's own work inside a step is part of every client's error. Compare ratios: absolute numbers are this machine's. Clients take
turns, and a row is the median of its turns, so that a neighbour's burst of work decides nothing. Exit status 1: in no turn was the p99 of
the first client within `--goal-ms`.
"""

# ruff: noqa: INP001  a script

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pd_contracts.latency import percentile
from pd_contracts.records import MANIFEST, REQUESTS, Manifest, RequestRecord, read_json, read_lines

HERE = Path(__file__).parent
Stamps = dict[str, list[float]]
OURS = "pd-loadgen"
OWN_CLOCK = "own clock"
# As on a system whose kernel does not stamp.
WITHOUT_KERNEL = """
import sys, locust
from pd_loadgen.live.sending import transport
transport.ask = lambda sock: False
from pd_loadgen.main import main
sys.exit(main())
"""
OTHERS = ("aiohttp", "httpx")
START = {OURS: ["-m", "pd_loadgen"], OWN_CLOCK: ["-c", WITHOUT_KERNEL]}
# All streams begin at once, and while they do, connecting competes with reading: not what a run looks like.
FIRST_CHUNKS = 10


@contextmanager
def serving(period: float, core: int) -> Iterator[str]:
    """A fresh server for each client, so that none inherits streams."""
    words = [sys.executable, str(HERE / "stamping_server.py"), str(period)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        pin(process.pid, core)
        assert process.stdout is not None  # noqa: S101  it was asked for
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def pin(pid: int, *cores: int) -> None:
    """Keep a process on some of the cores that we may use, before whatever else runs there if we may."""
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {usable[core % len(usable)] for core in cores})
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, -15)


def run_pinned(words: list[str], *cores: int) -> str:
    """Run a client to its end; returns what it printed, through a file: uvloop leaves a pipe that does not wait for its reader."""
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(words, stdout=output, stderr=subprocess.DEVNULL) as process:
            pin(process.pid, *cores)
            process.wait(timeout=600)
        if process.returncode not in (0, 3):
            msg = f"{words[1:4]} ended with {process.returncode}"
            raise RuntimeError(msg)
        output.seek(0)
        return output.read()


def ours(name: str, url: str, streams: int, chunks: int, processes: int) -> Stamps:
    """The stamps of `pd-loadgen run`, joined with the server's by the hash of the output; says how the client judged itself."""
    with tempfile.TemporaryDirectory() as folder:
        load = ["--arrival", "closed", "--max-concurrency", str(streams), "--requests", str(streams)]
        load += ["--input-tokens", "8", "--output-tokens", str(chunks), "--idle", "0", "--url", url]
        load += ["--processes", str(processes)]
        run_pinned([sys.executable, *START[name], "run", *load, "--out", folder], *range(processes))
        records = list(read_lines(Path(folder) / REQUESTS, RequestRecord))
        client = read_json(Path(folder) / MANIFEST, Manifest).client
    if client is not None:
        verdict = "VALID" if client.valid else f"INVALID, {client.remedy}"
        sys.stderr.write(f"{name}: {verdict}; {100 * (client.cpu_fraction or 0):.0f}% of a core a process\n")
    hashes = {
        hashlib.sha256("".join(f" {serial}.{number}" for number in range(chunks)).encode()).hexdigest(): serial
        for serial in stamps_of(url)
    }
    return {hashes[one.output_hash]: [at for at, _ in one.chunks] for one in records if one.output_hash in hashes}


def stamps_of(url: str) -> Stamps:
    """What the server wrote when."""
    with urllib.request.urlopen(f"{url}/stamps", timeout=60) as answer:  # noqa: S310  the URL is our own server's
        found: Stamps = json.load(answer)
        return found


def errors(client: Stamps, server: Stamps) -> list[float]:
    """All errors in milliseconds, without each stream's first chunks; a chunk that was not seen is missing in the count."""
    return [
        (seen - wrote) * 1e3
        for serial, times in client.items()
        for seen, wrote in list(zip(times, server[serial], strict=False))[FIRST_CHUNKS:]
    ]


def measure(name: str, streams: int, chunks: int, period: float, processes: int) -> list[float]:
    """One client against a server of its own."""
    with serving(period, processes) as url:
        if name in START:
            seen = ours(name, url, streams, chunks, processes)
        else:
            words = [sys.executable, str(HERE / "plain_clients.py"), name, url, str(streams), str(chunks)]
            seen = json.loads(run_pinned(words, 0))
        wrote = stamps_of(url)
        times = sorted(at for stamps in wrote.values() for at in stamps)
        sys.stderr.write(f"{name}: the server wrote {len(times) / (times[-1] - times[0]):.0f} chunks per second\n")
        return errors(seen, wrote)


def row(turns: list[list[float]]) -> dict[str, float]:
    """Medians over the turns, and the best p99."""
    p50, p99 = ([percentile(turn, q) or 0.0 for turn in turns] for q in (50, 99))
    return {
        "chunks": sum(map(len, turns)),
        "p50_ms": statistics.median(p50),
        "p99_ms": statistics.median(p99),
        "best_p99_ms": min(p99),
        "max_ms": max(map(max, turns)),
    }


def machine() -> str:
    """What these numbers belong to."""
    cpus = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {models[0] if models else platform.machine()}, Linux {platform.release()}"


def main() -> int:
    """Measure the clients in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=250)
    parser.add_argument("--rate", type=float, default=50.0, help="chunks per second of each stream")
    parser.add_argument("--turns", type=int, default=3, help="runs of each client")
    parser.add_argument(
        "--clients", nargs="+", choices=(*START, *OTHERS), default=(*START, *OTHERS), help="who takes part"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="of this client, each with a core; the server has the next"
    )
    parser.add_argument("--goal-ms", type=float, default=1.0, help="p99 error that this client is to keep")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    given = parser.parse_args()
    clients = [name for name in given.clients if name in START or importlib.util.find_spec(name)]
    found: dict[str, list[list[float]]] = {name: [] for name in clients}
    for _ in range(given.turns):
        for name in clients:
            found[name].append(measure(name, given.streams, given.chunks, 1 / given.rate, given.processes))
    rows = {name: row(turns) for name, turns in found.items()}
    sys.stdout.write(f"{machine()}; {given.streams} streams x {given.rate:g} chunks/s, {given.turns} turns\n")
    for name, numbers in rows.items():
        ratio = numbers["p99_ms"] / rows[clients[0]]["p99_ms"]
        shown = "  ".join(f"{key} {value:.3f}" for key, value in numbers.items() if key != "chunks")
        sys.stdout.write(f"{name:<11} chunks {numbers['chunks']}  {shown}  p99 ratio {ratio:.1f}\n")
    if given.out:
        kept = {"machine": machine(), "streams": given.streams, "rate": given.rate, "clients": rows}
        given.out.write_text(json.dumps(kept, indent=2) + "\n")
    return 0 if rows[clients[0]]["best_p99_ms"] <= given.goal_ms else 1


if __name__ == "__main__":
    sys.exit(main())
