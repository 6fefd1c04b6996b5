"""The socket that engines ping: a ZMQ DEALER that feeds the registry and survives invalid messages.

Everybody who can reach the port can send anything. So each message is judged by itself, refusals are counted by reason, and a
refusal is logged once per source and reason, in bounded memory. vLLM expects a ROUTER, which knows its peers by identities that they
choose: whoever connected with a live engine's would be heard in its place. A DEALER hears both.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import zmq
import zmq.asyncio

from pd_contracts.deployment import read_key
from pd_proxy.discovery.belief import Announcement, Believer, GoesOn
from pd_proxy.engines.registry import PingRefusedError
from pd_proxy.settings import Settings

# The logger's name does not depend on the name of this file.
logger = logging.getLogger("pd_proxy.discovery")

# Larger messages never arrive: libzmq drops the connection that sends them.
MAX_FRAME_BYTES: Final = 64 * 1024
# zmq.asyncio returns at once while messages are waiting; without a pause, a flood of them would starve all requests.
MESSAGES_PER_TURN: Final = 64
MAX_LOGGED_SOURCES: Final = 1024

Take = Callable[[Announcement], None]
Reject = Callable[[str], None]


def sender(frame: zmq.Frame) -> str:
    """The numeric address from which a message came; empty if it did not come over a network."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""


def identity_of(frame: zmq.Frame) -> bytes:
    """The identity that a message's sender chose; empty if it is no text."""
    try:
        return str(frame.get("Identity")).encode()
    except (zmq.ZMQError, UnicodeDecodeError):
        return b""


def is_own(host: str) -> bool:
    """Whether a numeric address is one of this host's; names are not looked up."""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def believer_of(settings: Settings, goes_on: GoesOn) -> Believer:
    """The judge of pings that the settings ask for; `goes_on` as in `Believer`.

    Raises:
        OSError: if the file of the key cannot be read.
    """
    key = read_key(settings.ping_key, settings.ping_key_file)
    return Believer(
        deployment=settings.deployment,
        key=key,
        unsigned=settings.unsigned_pings or not key,  # without a key no engine could sign
        networks=settings.networks(),
        own_ports=frozenset({settings.http_proxy_port, settings.proxy_port}),
        is_own=is_own,
        goes_on=goes_on,
    )


class Refusals:
    """Counts every refused ping, and logs each source and reason once."""

    def __init__(self, reject: Reject) -> None:
        """`reject` counts one refusal by its reason."""
        self._reject = reject
        self._logged: set[tuple[bytes, str]] = set()

    def __call__(self, identity: bytes, refusal: PingRefusedError) -> None:
        self._reject(refusal.reason)
        key = (identity[:64], refusal.reason)
        if key in self._logged or len(self._logged) >= MAX_LOGGED_SOURCES:
            return
        self._logged.add(key)
        logger.warning(
            "ping refused; not logged again for this source and reason",
            extra={"source": repr(key[0]), "reason": refusal.reason, "detail": str(refusal)[:200]},
        )


class Discovery:
    """Receives pings until it is closed."""

    def __init__(self, address: str, believer: Believer, take: Take, reject: Reject) -> None:
        """`address` is tcp://host:port; `take` gets each ping that is believed and may raise `PingRefusedError`."""
        self._address = address
        self._believer = believer
        self._take = take
        self._refused = Refusals(reject)
        self._zmq = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None

    def bind(self) -> None:
        """Open the socket.

        Raises:
            OSError: if the address is in use or invalid.
        """
        self._socket = self._zmq.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(self._address)
        except zmq.ZMQError as error:
            raise OSError(f"{error.strerror}") from error

    async def run(self) -> None:
        if self._socket is None:
            msg = "call bind first"
            raise RuntimeError(msg)
        while True:
            for _ in range(MESSAGES_PER_TURN):
                self._judge(await self._socket.recv_multipart(copy=False))
            await asyncio.sleep(0)

    def _judge(self, frames: Sequence[zmq.Frame]) -> None:
        try:
            self._take(self._said(frames))
        except PingRefusedError as refusal:
            self._refused(identity_of(frames[0]), refusal)

    def _said(self, frames: Sequence[zmq.Frame]) -> Announcement:
        if len(frames) != 1:
            raise PingRefusedError("frames", f"{len(frames)} frames instead of one")
        [payload] = frames
        return self._believer.judge(identity_of(payload), payload.bytes, sender(payload), time.time())

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._zmq.term()
