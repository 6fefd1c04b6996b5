"""Rolling restarts under load: two prefills, two decodes and their proxy, one after the other replaced while clients go on asking."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from support.crowd import Crowd, Tally
from support.faults import Deployment

CLIENTS: Final = 8
KEY: Final = {"Authorization": "Bearer secret"}
# What is restarted, and whether the proxy is told before (`POST /admin/instances/NAME/drain?wait_s=…`).
RESTARTS: Final = {
    "both prefills, drained before": (("prefill-0", "prefill-1"), True),
    "both decodes, drained before": (("decode-0", "decode-1"), True),
    "both prefills, by SIGTERM and the proxy not told": (("prefill-0", "prefill-1"), False),
    "both decodes, by SIGTERM and the proxy not told": (("decode-0", "decode-1"), False),
    "the proxy, by SIGTERM": ((), False),
}


@dataclass(frozen=True)
class Result:
    """What clients got; `kv_left` is what lies at engines afterwards."""

    tally: Tally
    kv_left: int

    @property
    def told(self) -> int:
        """Streams that had begun, and ended in an error event."""
        return self.tally.outcomes["told"]

    @property
    def turned_away(self) -> int:
        """Requests that nobody took: there was no proxy, or one about to stop (503). Clients ask again."""
        return sum(self.tally.outcomes[how] for how in ("no connection", "reset", "unread", "503"))

    @property
    def lost(self) -> int:
        """All others that were not answered."""
        total = sum(self.tally.outcomes.values())
        return total - self.tally.outcomes["answered"] - self.told - self.turned_away

    def row(self, name: str) -> str:
        cells = (name, self.tally.outcomes["answered"], self.told, self.turned_away, self.lost, self.kv_left)
        return f"| {' | '.join(map(str, cells))} |"


async def run(names: tuple[str, ...], *, drained: bool) -> Result:
    """Restart these engines one after the other, or without any the proxy, while clients ask."""
    async with Deployment.started(admin_key="secret", drain_timeout_s=5.0, prefill_timeout_s=10.0) as deployment:
        crowd = Crowd(
            deployment.proxy.settings.http_proxy_port,
            seed=3,
            patience_s=20.0,
            model=(await deployment.proxy.get("/v1/models")).json["data"][0]["id"],
            manners={"stays": 1},
        )
        await crowd.learn(deployment.proxy.session)
        async with _asking(crowd):
            for name in names:
                await _restart(deployment, name, drained=drained)
            if not names:
                await _under_load()
                await deployment.proxy.restart()
                await deployment.proxy.stats_where(lambda stats: stats.ready)
            await _under_load()
        await deployment.proxy.settled()
        await asyncio.sleep(0.5)
        return Result(crowd.tally, await deployment.occupied())


async def _restart(deployment: Deployment, name: str, *, drained: bool) -> None:
    await _under_load()
    if drained:
        reply = await deployment.proxy.post({}, f"/admin/instances/{name}/drain?wait_s=10", **KEY)
        assert reply.json["drained"] is True
    await deployment.stop(name)
    await deployment.restart(name)
    await deployment.proxy.stats_where(lambda stats: [i.state for i in stats.instances] == ["ready"] * 4)


async def _under_load() -> None:
    await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def _asking(crowd: Crowd) -> AsyncIterator[None]:
    """Clients that ask again and again."""
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            await crowd.one()
            await asyncio.sleep(0.05)  # or the same moment without a proxy would be counted a thousand times

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask())
        try:
            yield
        finally:
            over.set()


HEAD: Final = f"""
## Rolling restarts

{CLIENTS} clients send requests without pause to two prefill and two decode engines (P2pConnector), which are replaced one after the other.
*Turned away* counts attempts while the only proxy restarted: no proxy could be reached, so no request was lost.

| what restarts | answered | ended by an error event | turned away | lost | KV left |
| --- | --- | --- | --- | --- | --- |
"""


async def section() -> str:
    """The page's part about this; the numbers are this run's."""
    rows = [(await run(names, drained=drained)).row(name) for name, (names, drained) in RESTARTS.items()]
    return HEAD + "\n".join(rows) + "\n"
