"""Messages between a proxy's parent and its workers: JSON frames over a socket that the parent opens before it starts a worker."""

import asyncio
import socket
from typing import Any, Final

import msgspec

from pd_proxy.engines.registry import Instance
from pd_proxy.engines.trust import Judgment
from pd_proxy.kv.debts import Debt
from pd_proxy.metrics import Numbers, Sample
from pd_proxy.settings import Settings

_LENGTH_BYTES: Final = 4


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A message; each arrives whole, in order and once."""


class Welcome(Message, frozen=True, kw_only=True):
    """The first message to a worker: its settings and number.

    Attributes:
        counters: the file descriptor of the shared counters.
        listener: the file descriptor of its listening socket.
        handover: the file descriptor of a socket over which it gets clients' connections.
    """

    settings: Settings
    number: int
    counters: int
    listener: int
    handover: int
    started: float


class News(Message, frozen=True, kw_only=True):
    """To a worker, whenever something changed: all engines, the canaries' verdicts and every engine's slot in the shared counters."""

    instances: tuple[Instance, ...]
    verdicts: tuple[tuple[int, int, Judgment], ...]
    slots: dict[int, int]


class Ask(Message, frozen=True, kw_only=True):
    """To a worker: send a report. By then it has received all earlier messages."""

    number: int


class Stop(Message, frozen=True, kw_only=True):
    """To a worker: take no more requests, let the running ones end, then exit."""


class Forwarded(Message, frozen=True, kw_only=True):
    """To the parent: a client's request that is about the whole proxy. The bodies of such requests do not matter."""

    number: int
    method: str
    path: str
    query: bytes
    headers: dict[str, str]


class Answered(Message, frozen=True, kw_only=True):
    """To a worker: the answer for the client."""

    number: int
    status: int
    headers: dict[str, str]
    body: bytes


class Ready(Message, frozen=True, kw_only=True):
    """To the parent: clients can connect."""


class Beat(Message, frozen=True, kw_only=True):
    """To the parent: the worker's event loop is running."""


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's evidence about the requests that it sent to one address; see `flights.Evidence`."""

    address: str
    requests: int
    failures: int
    last_progress: float
    waits: list[tuple[float, bool]]


class Report(Message, frozen=True, kw_only=True):
    """To the parent: the worker's counts at time `at`; `answers` is the number of the last `Ask`."""

    at: float
    answers: int = 0
    numbers: Numbers
    engines: list[EngineReport]
    samples: list[Sample]


class Owed(Message, frozen=True, kw_only=True):
    """To the parent: KV that decode has to consume."""

    debt: Debt


class Unreachable(Message, frozen=True, kw_only=True):
    """To the parent: an engine refuses connections."""

    incarnation: int
    reason: str


class LookAgain(Message, frozen=True, kw_only=True):
    """To the parent: a client asked for a model that no engine is known to serve; ask the engines."""

    number: int


class Looked(Message, frozen=True, kw_only=True):
    """To a worker: the engines were asked, and the news from them has been sent before this message."""

    number: int


AnyMessage = (
    Welcome | News | Ask | Stop | Forwarded | Answered | Ready | Beat | Report | Owed | Unreachable | LookAgain | Looked
)
_decoder = msgspec.json.Decoder(AnyMessage)


class Channel:
    """One end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """Take over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Send a message; it is lost if the other end is gone, which `receive` reports."""
        data = msgspec.json.encode(message)
        self._writer.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)

    async def receive(self) -> Any:
        """The next message; None once the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "little")
            return _decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        self._writer.close()
