"""Arrival times come from the kernel: they are right even if this process does not run meanwhile.

In processes of their own, because they need gevent.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.loadgen import StampedServer, run

from pd_contracts.records import Manifest, read_json

pytestmark = pytest.mark.timed

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's stamps are Linux's")

# A server thread writes three chunks, 50 ms apart; the loop is kept busy over the second, which it reads 30 ms late.
CODE = """
import json, sys, time
from gevent import monkey
plain = monkey.get_original("socket", "socket")
import gevent
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.client.address import parse_url
from pd_loadgen.live.sending import transport
if sys.argv[1] == "process":
    transport.ask = lambda sock: False
real = time.time_ns
listening = plain()
listening.bind(("127.0.0.1", 0))
listening.listen()
wrote = []
def serve():
    peer, _ = listening.accept()
    peer.recv(65536)
    peer.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
    begin = time.monotonic()
    for number in range(3):
        time.sleep(max(0, begin + 0.05 * (number + 1) - time.monotonic()))
        wrote.append(time.monotonic())
        peer.sendall(b"1\\r\\nx\\r\\n")
    time.sleep(0.05)
    peer.sendall(b"0\\r\\n\\r\\n")
_thread_start = monkey.get_original("_thread", "start_new_thread")
time.sleep = monkey.get_original("time", "sleep")
_thread_start(serve, ())
pool = transport.Pool(parse_url(f"http://127.0.0.1:{listening.getsockname()[1]}"))
exchange = Exchange(0.0)
def busy():
    while len(wrote) < 2: pass
    end = wrote[1] + 0.03
    while time.monotonic() < end: pass
    if sys.argv[1] == "set":
        time.time_ns = lambda: real() + 3_600_000_000_000
        pool.stamps._compare()
gevent.spawn_later(0.08, busy)
with pool.connection() as connection:
    connection.run(b"GET / HTTP/1.1\\r\\n\\r\\n", exchange, 5)
late = [at - wrote[n] for n, (at, _) in enumerate(exchange.reads)]
print(json.dumps({"late": late, "lags": max(pool.stamps.lags.counts, default=-1), "unknown": pool.stamps.unknown,
                  "trusted": pool.stamps.trusted, "end": exchange.end - exchange.reads[-1][0]}))
"""


def measured(how: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, timeout=30)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@linux
def test_a_chunk_that_is_read_late_keeps_the_time_of_its_coming() -> None:
    found = measured("kernel")

    assert all(-0.0001 < late < 0.02 for late in found["late"])
    assert found["lags"] >= 2500  # in steps of 10 µs: the lateness itself is known
    assert found["trusted"]
    assert found["end"] > 0.03  # the end is that of the last byte


def test_without_the_kernels_stamps_the_process_stamps() -> None:
    found = measured("process")

    assert found["late"][1] >= 0.025
    assert not found["trusted"]


@linux
def test_a_wall_clock_that_was_set_is_noticed() -> None:
    found = measured("set")  # from the second chunk on, stamps seem to be an hour old

    assert all(-0.0001 < late < 0.05 for late in found["late"])
    assert found["unknown"] >= 1
    assert not found["trusted"]


@linux
def test_a_run_of_a_few_requests_without_warm_ups_has_the_kernels_stamps(tmp_path: Path) -> None:
    """The kernel begins to stamp some time after the first socket asked it to, so one asks before the first request."""
    with StampedServer(ttft=0.02, tpot=0.005).running() as server:
        done = run(server.url, tmp_path / "run", rate=10, duration=0.5)

    client = read_json(tmp_path / "run" / "manifest.json", Manifest).client
    assert done.returncode == 0, done.stderr
    assert client is not None
    assert client.stamps == "kernel"
