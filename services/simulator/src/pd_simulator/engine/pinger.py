"""Announces the engine to the proxy, as vLLM's P2pNcclEngine does: from the start of the process, ready or not."""

import asyncio
import logging
import time

import zmq

from pd_contracts.ping import PING_INTERVAL_S, Ping, sign_ping
from pd_simulator.faults import Faults

log = logging.getLogger(__name__)


class Pinger:
    """A DEALER whose identity is the ping's KV address."""

    def __init__(
        self, ping: Ping, host: str, port: int, faults: Faults, interval_s: float = PING_INTERVAL_S, *, key: str = ""
    ) -> None:
        """`host` may be a name that resolves later; nothing is sent while the faults say so. `key` signs, if there is one."""
        self._faults = faults
        self._ping = ping
        self._key = key
        self._identity = ping.zmq_address
        self._endpoint = f"tcp://{host}:{port}"
        self._interval_s = interval_s

    async def run(self) -> None:
        """Ping until cancelled."""
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        try:
            socket.setsockopt_string(zmq.IDENTITY, self._identity)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            while True:
                if not self._faults.mute:
                    self._send(socket)
                await asyncio.sleep(self._interval_s)
        finally:
            socket.close()
            context.term()

    def _send(self, socket: zmq.Socket[bytes]) -> None:
        try:
            socket.send(sign_ping(self._ping, self._key, time.time()), zmq.NOBLOCK)
        except zmq.Again:
            # The proxy has been away for as long as the queue is deep; it gets the queued pings when it is back.
            log.debug("ping not sent, the queue is full")
