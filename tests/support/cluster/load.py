"""Clients outside the cluster that ask the proxy's service without pause while something happens to the release."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import aiohttp
import yaml
from support.chart import CHART
from support.cluster.release import PROXY_PORT, Release
from support.crowd import Crowd, Tally
from support.rolling import Result

from pd_control.client import ClientError, get

CLIENTS: Final = 6
# With the profile's 7 ms per token: up to 3 s, so that something is always half-way.
LENGTHS: Final = (1, 16, 128, 400)
# A hung engine is found by three liveness probes in a row, after it has stalled for engine.stallSeconds.
PATIENCE_S: Final = 150.0
# On a busy machine that takes longer than requests may be tried again.
RETRY_BUDGET_S: Final[float] = yaml.safe_load((CHART / "values.yaml").read_text())["proxy"]["retryBudgetSeconds"]


class Asking:
    """Clients in a thread of their own."""

    def __init__(self, release: Release, lengths: Sequence[int] = LENGTHS) -> None:
        model = get(f"{release.url}/v1/models", 10).json()["data"][0]["id"]
        self._crowd = Crowd(
            PROXY_PORT,
            seed=3,
            patience_s=PATIENCE_S,
            model=model,
            manners={"stays": 1},
            host=release.host,
            lengths=lengths,
        )
        self._over = threading.Event()
        self._learned = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def begin(self) -> None:
        """Learn what is right while all is well, then ask."""
        self._thread.start()
        if not self._learned.wait(PATIENCE_S):
            msg = "not even before anything happened were requests answered"
            raise TimeoutError(msg)

    def end(self) -> Crowd:
        """Let running requests end; what became of all."""
        self._over.set()
        self._thread.join(2 * PATIENCE_S)
        return self._crowd

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await self._crowd.learn(session)
        self._learned.set()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._ask())

    async def _ask(self) -> None:
        while not self._over.is_set():
            await self._crowd.one()
            await asyncio.sleep(0.05)  # or the same moment without a proxy would be counted a thousand times


@contextlib.contextmanager
def asking(release: Release, lengths: Sequence[int] = LENGTHS) -> Iterator[list[Result]]:
    """Clients for as long as the block; afterwards the list holds what they got."""
    clients = Asking(release, lengths)
    results: list[Result] = []
    clients.begin()
    try:
        yield results
    finally:
        tally = clients.end().tally
        count_statuses(tally)
        results.append(Result(tally, kv_left(release)))


def count_statuses(tally: Tally) -> None:
    """Count errors of requests in progress as such: without a stream they have no event to end with, and are a status.

    That is 504 where decode stalled for too long, or 502 where it died when it was too late for another attempt.
    """
    late = sum(seconds > RETRY_BUDGET_S for seconds in tally.took_s["502"])
    tally.outcomes["502"] -= late
    tally.outcomes["told"] += late + tally.outcomes.pop("504", 0)
    tally.outcomes += Counter()  # without zeros


def kv_left(release: Release) -> int:
    """KV that lies at simulated engines, or is waited for, once nothing runs."""
    return sum(_occupied(release, component) for component in ("prefill", "decode"))


def _occupied(release: Release, component: str) -> int:
    ports = {"prefill": 20003, "decode": 20005}
    left = 0
    for pod in release.pods(component):
        with contextlib.suppress(ClientError):  # it has none if it does not answer
            books = get(f"http://{pod['status'].get('podIP')}:{ports[component]}/sim/books", 5).json()
            left += books["held"] + books["waiting"] + books["leaked"]
    return left
