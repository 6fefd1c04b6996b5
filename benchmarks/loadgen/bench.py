"""How late does a client stamp a token? This client, aiohttp and httpx against one server that stamps what it writes, in one run.

Error of a chunk = the client's stamp − the server's stamp just before its write; both processes are pinned to a core of their own.
The server's own work inside a step is part of every client's error. Compare ratios: absolute numbers are this machine's.
"""

# ruff: noqa: INP001  a script

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pd_contracts.latency import percentile
from pd_contracts.records import REQUESTS, RequestRecord, read_lines

HERE = Path(__file__).parent
Stamps = dict[str, list[float]]
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


def pin(pid: int, core: int) -> None:
    """Keep a process on one of the cores that we may use."""
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {usable[core % len(usable)]})


def run_pinned(words: list[str], core: int) -> str:
    """Run a client to its end; returns what it printed."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        pin(process.pid, core)
        output, _ = process.communicate(timeout=600)
    if process.returncode not in (0, 3):
        msg = f"{words[1:4]} ended with {process.returncode}"
        raise RuntimeError(msg)
    return output


def ours(url: str, streams: int, chunks: int) -> Stamps:
    """The stamps of `pd-loadgen run`, joined with the server's by the hash of the output."""
    with tempfile.TemporaryDirectory() as folder:
        load = ["--arrival", "closed", "--max-concurrency", str(streams), "--requests", str(streams)]
        load += ["--input-tokens", "8", "--output-tokens", str(chunks), "--idle", "0", "--url", url]
        run_pinned([sys.executable, "-m", "pd_loadgen", "run", *load, "--out", folder], 0)
        records = list(read_lines(Path(folder) / REQUESTS, RequestRecord))
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


def measure(name: str, streams: int, chunks: int, period: float) -> list[float]:
    """One client against a server of its own."""
    with serving(period, 1) as url:
        if name == "pd-loadgen":
            seen = ours(url, streams, chunks)
        else:
            seen = json.loads(
                run_pinned([sys.executable, str(HERE / "plain_clients.py"), name, url, str(streams), str(chunks)], 0)
            )
        return errors(seen, stamps_of(url))


def main() -> int:
    """Measure each client in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=250)
    parser.add_argument("--rate", type=float, default=50.0, help="chunks a second of each stream")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    given = parser.parse_args()
    rows: dict[str, dict[str, float | int | None]] = {}
    for name in ("pd-loadgen", "aiohttp", "httpx"):
        if name != "pd-loadgen" and importlib.util.find_spec(name) is None:
            sys.stdout.write(f"{name}: not installed, left out\n")
            continue
        found = measure(name, given.streams, given.chunks, 1 / given.rate)
        rows[name] = {
            "chunks": len(found),
            **{f"p{q}_ms": percentile(found, q) for q in (50, 99)},
            "max_ms": max(found),
        }
        base = rows["pd-loadgen"]["p99_ms"] or 1.0
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in rows[name].items() if value is not None)
        sys.stdout.write(f"{name:<11} {numbers}  p99 ratio {(rows[name]['p99_ms'] or 0.0) / base:.1f}\n")
        sys.stdout.flush()
    if given.out:
        given.out.write_text(
            json.dumps({"streams": given.streams, "rate": given.rate, "clients": rows}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
