"""The proxies to which an engine announces itself: all that PROXY_HOST names.

It may be a name or address, a list of them with commas, or a name that has several addresses (a headless service, a scaled compose service). An entry
of a list may have a port of its own, `proxy-b:30002`.
"""

import socket
import threading
from collections.abc import Sequence
from typing import Any, Final

LOOK_UP_S: Final = 3.0
CONNECT_TIMEOUT_MS: Final = 3000


def entries(hosts: str, port: int) -> list[tuple[str, int]]:
    """Hosts and ports as they are written; entries without a port get `port`.

    Raises:
        ValueError: for an invalid port.
    """
    found = []
    for entry in filter(None, (part.strip() for part in hosts.split(","))):
        host, colon, own = entry.rpartition(":")
        if colon and not (own.isdecimal() and 0 < int(own) < 65536):
            msg = f"PROXY_HOST: {entry!r} is neither a host nor host:port"
            raise ValueError(msg)
        found.append((host, int(own)) if colon else (entry, port))
    return found


def first_host(hosts: str, port: int) -> tuple[str, int]:
    """One of them, through whose network all are taken to be reached."""
    return next(iter(entries(hosts, port)), ("", port))


def addresses(hosts: str, port: int) -> list[str]:
    """Numeric `address:port` of all of them; names that do not resolve have none."""
    found: dict[str, None] = {}
    for host, own in entries(hosts, port):
        try:
            known = socket.getaddrinfo(host, own, socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            continue
        found |= dict.fromkeys(":".join(map(str, address[:2])) for *_, address in known)
    return list(found)


class Proxies:
    """All proxies' addresses, looked up again and again in a thread: a name server that hangs must not keep pings waiting."""

    def __init__(self, hosts: str, port: int, interval_s: float = LOOK_UP_S) -> None:
        self._hosts = hosts
        self._port = port
        self._interval_s = interval_s
        self._known: Sequence[str] = ()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._look_up, daemon=True, name="proxies").start()

    def stop(self) -> None:
        self._stopped.set()

    def known(self) -> Sequence[str]:
        """The addresses of the last successful look-up; they stay valid while look-ups fail."""
        return self._known

    def _look_up(self) -> None:
        while True:
            self._known = addresses(self._hosts, self._port) or self._known
            if self._stopped.wait(self._interval_s if self._known else min(0.2, self._interval_s)):
                return


class Dealers:
    """A ZMQ DEALER to each proxy, with one identity. `context` is a `zmq.Context`; callers must depend on pyzmq themselves."""

    def __init__(self, context: Any, identity: str) -> None:
        self._context = context
        self._identity = identity.encode()
        self._sockets: dict[str, Any] = {}

    def send(self, message: bytes, to: Sequence[str]) -> None:
        """Send it to these addresses and no others. At most one message is queued: a proxy that was away must not get a burst of old ones."""
        import zmq  # noqa: PLC0415  contracts have users without it

        for gone in [address for address in self._sockets if address not in to]:
            self._sockets.pop(gone).close()
        for address in to:
            if address not in self._sockets:
                self._sockets[address] = self._connected(zmq, address)
            try:
                self._sockets[address].send(message, zmq.NOBLOCK)
            except zmq.Again:
                continue  # this proxy is away, and one message waits already

    def _connected(self, zmq: Any, address: str) -> Any:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.SNDHWM, 1)
        # Else Linux tries the same connection for two minutes. One that was begun before Kubernetes led the service's address to a proxy never
        # comes about, because the node keeps to where its first packet went; a new one does.
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        dealer.connect(f"tcp://{address}")
        return dealer

    def close(self) -> None:
        """Close all connections."""
        for dealer in self._sockets.values():
            dealer.close()
        self._sockets.clear()
