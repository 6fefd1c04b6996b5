"""Announces the engine to every proxy, as vLLM's P2pNcclEngine does to one: from the start of the process, ready or not."""

import asyncio
import time

import zmq

from pd_contracts.ping import PING_INTERVAL_S, Ping, sign_ping
from pd_contracts.proxies import Dealers, Proxies
from pd_simulator.faults import Faults

# Until the names of the proxies resolve.
START_CHECK_S = 0.02


class Pinger:
    """A DEALER to each proxy, whose identity is the ping's KV address."""

    def __init__(
        self, ping: Ping, host: str, port: int, faults: Faults, interval_s: float = PING_INTERVAL_S, *, key: str = ""
    ) -> None:
        """`host` may name several, and resolve later; nothing is sent while the faults say so. `key` signs, if there is one."""
        self._faults = faults
        self._ping = ping
        self._key = key
        self._proxies = Proxies(host, port)
        self._interval_s = interval_s

    async def run(self) -> None:
        self._proxies.start()
        context = zmq.Context()
        dealers = Dealers(context, self._ping.zmq_address)
        try:
            while True:
                known = self._proxies.known()
                if known and not self._faults.mute:
                    dealers.send(sign_ping(self._ping, self._key, time.time(), time.monotonic()), known)
                await asyncio.sleep(self._interval_s if known else START_CHECK_S)
        finally:
            self._proxies.stop()
            dealers.close()
            context.term()
