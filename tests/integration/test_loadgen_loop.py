"""The loop that stamps tokens: how its own lateness is measured, and that waiting does not delay its sockets.

In processes of their own, because they need gevent.
"""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timed

# The loop is kept busy for 50 ms in the middle of 150 ms; the probe looks every 5 ms.
CODE = """
import sys, time, gevent
from pd_loadgen.verdict.lag_histogram import STEPS_A_SECOND
from pd_loadgen.live.sending import loop_probe
running = getattr(loop_probe, sys.argv[1])()
gevent.sleep(0.05)
end = time.monotonic() + 0.05
while time.monotonic() < end: pass
gevent.sleep(0.05)
running.close()
taken, lags = running.lags.total, running.lags
gevent.sleep(0.02)
print(taken, lags.total, max(lags.counts) / STEPS_A_SECOND, lags.above(0.02), min(lags.counts))
"""


@pytest.mark.parametrize("name", ["KernelProbe", "LoopProbe", "start"])
def test_a_stall_is_seen_by_every_look_that_it_delayed(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, check=True)
    taken, after_close, worst, late, best = done.stdout.split()

    assert int(taken) >= 25  # none is left out because the loop was away
    assert taken == after_close
    assert 0.04 < float(worst) < 0.5
    assert int(late) >= 4  # not one late look, but all that fell into the stall
    assert float(best) >= 0


# A socket that always waits to be served, until it has been served 30 times.
TURNS = """
import os, sys, gevent
from gevent.hub import get_hub
from pd_loadgen.live.sending import yielding
reading, writing = os.pipe()
os.write(writing, b"x")
served = 0
def serve():
    global served
    served += 1
    if served == 30:
        os.read(reading, 1)
watcher = get_hub().loop.io(reading, 1)
watcher.start(serve)
for turn in range(int(sys.argv[2])):
    getattr(yielding, sys.argv[1])()
print(served)
"""


@pytest.mark.parametrize(
    ("name", "turns", "served"), [("after_a_look", 20, range(19, 22)), ("when_idle", 1, range(30, 31))]
)
def test_waiting_leaves_the_loop_to_its_sockets(name: str, turns: int, served: range) -> None:
    code = [sys.executable, "-c", TURNS, name, str(turns)]
    done = subprocess.run(code, capture_output=True, text=True, check=True, timeout=20)

    assert int(done.stdout) in served
