# ruff: noqa: INP001 - scripts, not a package
"""Hands every ping to several proxies: an engine announces itself to one, and here each topology has a proxy of its own."""

import threading
from collections.abc import Sequence

import zmq


class Fanout:
    """A thread between engines and proxies; each ping goes on under the identity that it came with."""

    def __init__(self, port: int, proxies: Sequence[int]) -> None:
        """Engines ping `port`; `proxies` are discovery ports, where nobody needs to listen yet."""
        self._port, self._proxies = port, proxies
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="fanout")

    def __enter__(self) -> "Fanout":
        """Listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._stopped.set()
        self._thread.join()

    def _forward(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as engines:
            engines.setsockopt(zmq.ROUTER_HANDOVER, 1)
            engines.bind(f"tcp://127.0.0.1:{self._port}")
            onward: dict[bytes, list[zmq.Socket[bytes]]] = {}
            while not self._stopped.is_set():
                if not engines.poll(200):
                    continue
                identity, ping = engines.recv_multipart()
                if identity not in onward:
                    onward[identity] = [self._connect(context, identity, port) for port in self._proxies]
                for socket in onward[identity]:
                    if socket.poll(0, zmq.POLLOUT):
                        socket.send(ping)
            for socket in (socket for sockets in onward.values() for socket in sockets):
                socket.close(linger=0)

    def _connect(self, context: "zmq.Context[zmq.Socket[bytes]]", identity: bytes, port: int) -> "zmq.Socket[bytes]":
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.SNDHWM, 2)  # a proxy that comes later must not get old pings by the dozen
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket
