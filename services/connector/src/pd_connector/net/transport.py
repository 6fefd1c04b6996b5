"""The interface of a transport, which moves KV, at both ends of a push connection. The connection itself carries only messages."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pd_connector.memory.pages import Memory


class TransportError(RuntimeError):
    """The transport cannot be used with this peer, or broke; the message says why."""


@dataclass(frozen=True, slots=True)
class Move:
    """One page to copy: from staging memory, to a page of decode's landing memory, once `mark` has passed."""

    source: int
    target: int
    size: int
    mark: Any = None


def neighbours(moves: list[Move], page_bytes: int) -> list[tuple[int, int, int]]:
    """Offsets and sizes of copies: pages that are adjacent on both ends are copied together."""
    found: list[tuple[int, int, int]] = []
    for move in moves:
        source, target = move.source * page_bytes, move.target * page_bytes
        if found and found[-1][0] + found[-1][2] == source and found[-1][1] + found[-1][2] == target:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + move.size)
        else:
            found.append((source, target, move.size))
    return found


@dataclass(frozen=True, slots=True)
class Invitation:
    """What prefill knows about a connection when it opens a transport for it.

    Attributes:
        timeout_s: for each step of opening it.
        put_timeout_s: for each copy after that.
    """

    address: str
    session: str
    details: dict[str, str]
    timeout_s: float
    put_timeout_s: float


class Writer(Protocol):
    """Prefill's end.

    Attributes:
        alone: it blocks on its peer, so it needs its own thread; others may be used by several threads at once.
    """

    alone: bool

    def write(self, moves: list[Move]) -> float:
        """Copy pages; they are at decode when this returns. Returns the seconds that the copy itself took.

        Raises:
            TransportError: if that failed, or took too long; the writer cannot be used afterwards.
        """
        ...

    def abort(self) -> None:
        """Stop a running write, if possible."""
        ...

    def close(self) -> None:
        """Release the writer; no write is running, and none will follow."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What decode's end of a transport needs from its engine.

    Attributes:
        landing: the memory that peers write; made on first use.
        may_write: whether pages are granted to a session now.
        quiet: must be called once a session's peer can no longer write.
    """

    landing: Callable[[], Memory]
    may_write: Callable[[str, list[int]], bool]
    quiet: Callable[[str], None]


class Transport(Protocol):
    """A way to move KV.

    Attributes:
        name: its name in settings and messages.
        kind: the kind of memory at both ends.
    """

    name: str
    kind: str

    def open(self, invitation: Invitation, staging: Memory) -> Writer:
        """Open prefill's end for one connection. May wait for `timeout_s`.

        Raises:
            TransportError: if the transport does not work here.
        """
        ...

    def listen(self, site: Site) -> dict[str, str]:
        """Open decode's end for all connections; returns what peers must know. Called once.

        Raises:
            TransportError: if the transport does not work here.
        """
        ...

    def adopt(self, session: str, sock: socket.socket | None) -> None:
        """Tell decode's end about a session, and perhaps later about a socket that the peer opened for it."""
        ...

    def end(self, session: str) -> None:
        """The session's connection broke; `Site.quiet` follows once its peer can no longer write."""
        ...

    def stop(self) -> None: ...
