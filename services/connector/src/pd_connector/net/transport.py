"""What a way to move KV does at either end of a push connection. The connection itself carries only messages."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pd_connector.memory.pages import Memory


class TransportError(RuntimeError):
    """This way cannot be used with this peer, or broke; the message says why."""


@dataclass(frozen=True, slots=True)
class Move:
    """One page to copy: from staging memory, to a page of decode's landing memory, once `mark` has passed."""

    source: int
    target: int
    size: int
    mark: Any = None


@dataclass(frozen=True, slots=True)
class Invitation:
    """What prefill knows of a connection when it opens a transport for it.

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
        alone: it waits for its peer, so it needs a thread of its own; others may be used by several threads at once.
    """

    alone: bool

    def write(self, moves: list[Move]) -> float:
        """Copy pages; they are at decode when this returns. Returns the seconds that the copy itself took.

        Raises:
            TransportError: if that failed, or took too long; the writer is of no use any more.
        """
        ...

    def abort(self) -> None:
        """Whoever writes is to stop, if it can be stopped."""
        ...

    def close(self) -> None:
        """Nobody writes any more, and nobody will."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What decode's end of a transport may ask of its engine.

    Attributes:
        landing: the memory that peers write; made when it is used first.
        may_write: whether pages are granted to a session now.
        quiet: tells that a session's peer cannot write any more.
    """

    landing: Callable[[], Memory]
    may_write: Callable[[str, list[int]], bool]
    quiet: Callable[[str], None]


class Transport(Protocol):
    """One way to move KV.

    Attributes:
        name: as settings and messages call it.
        kind: the kind of memory at both ends.
    """

    name: str
    kind: str

    def open(self, invitation: Invitation, staging: Memory) -> Writer:
        """Prefill's end, for one connection. May wait for `timeout_s`.

        Raises:
            TransportError: if this way does not work here.
        """
        ...

    def listen(self, site: Site) -> dict[str, str]:
        """Decode's end, for all connections: what peers must know. Called once.

        Raises:
            TransportError: if this way does not work here.
        """
        ...

    def adopt(self, session: str, sock: socket.socket | None) -> None:
        """Decode's end hears of a session, then perhaps of a socket that the peer opened for it."""
        ...

    def end(self, session: str) -> None:
        """The session's connection broke; `Site.quiet` follows as soon as its peer cannot write any more."""
        ...

    def stop(self) -> None: ...
