"""The first messages of a connection at both ends, and what must be equal on both."""

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pd_connector.memory.pages import Memory
from pd_connector.net.channel import tune
from pd_connector.net.data import read_message
from pd_connector.net.transport import Invitation, Transport, TransportError, Writer
from pd_connector.settings import Settings
from pd_connector.wire.frames import frame
from pd_connector.wire.messages import VERSION, Hello, ProtocolError, Purpose, Refusal, Use, Welcome
from pd_connector.wire.params import split


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of this rank of this engine.

    Attributes:
        address: where it listens.
        schema: what must be equal on both ends, as text, by a readable name.
    """

    boot: str
    address: str
    rank: int
    schema: Mapping[str, str]


class RefusedError(ConnectionError):
    """The other engine refused the connection; the message says why."""


def misfit(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Why two engines cannot exchange KV; empty if they can."""
    differences = [
        f"{name} is {theirs.get(name, 'unknown')} there and {mine.get(name, 'unknown')} here"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]
    return "; ".join(differences)


def judge(hello: Hello, identity: Identity) -> Refusal | None:
    """Refuse an engine that this one cannot work with."""
    if hello.version != VERSION:
        return Refusal(reason=f"protocol version {hello.version} there and {VERSION} here")
    if hello.purpose == "data":
        return None
    if hello.rank != identity.rank:
        return Refusal(reason=f"rank {hello.rank} there and {identity.rank} here")
    reason = misfit(identity.schema, hello.schema)
    return Refusal(reason=reason) if reason else None


def greet(
    identity: Identity, address: str, purpose: Purpose, transports: list[str], timeout_s: float
) -> tuple[socket.socket, Welcome]:
    """Connect to another engine and send the hello. May wait for `timeout_s` in each step.

    Raises:
        RefusedError: if it refuses, or does not speak this protocol.
        OSError: if it cannot be reached.
    """
    sock = tune(socket.create_connection(split(address), timeout=timeout_s))
    hello = Hello(
        purpose=purpose,
        boot=identity.boot,
        address=identity.address,
        rank=identity.rank,
        schema=dict(identity.schema),
        transports=transports,
    )
    with contextlib.ExitStack() as opened:
        opened.callback(sock.close)
        try:
            sock.sendall(frame(hello))
            answer = read_message(sock)
        except (EOFError, ProtocolError) as error:
            msg = f"it does not speak this protocol ({error or 'it hung up'})"
            raise RefusedError(msg) from error
        if not isinstance(answer, Welcome):
            raise RefusedError(answer.reason if isinstance(answer, Refusal) else "its answer was not a welcome")
        opened.pop_all()
    return sock, answer


def choose(
    welcome: Welcome,
    transports: Mapping[str, Transport],
    staging: Callable[[str], Memory],
    address: str,
    settings: Settings,
) -> tuple[Transport, Writer, dict[str, str]]:
    """Open the first transport that works; the offers are in decode's order. Also returns why better ones did not.

    Raises:
        RefusedError: if none does; the message has each one's reason.
    """
    reasons: dict[str, str] = {}
    for offer in welcome.offers:
        transport = transports[offer.transport]
        invitation = Invitation(
            address, welcome.session, offer.details, settings.hello_timeout_s, settings.put_timeout_s
        )
        try:
            return transport, transport.open(invitation, staging(transport.kind)), reasons
        except TransportError as error:
            reasons[transport.name] = str(error)
    msg = "no transport works: " + ("; ".join(reasons.values()) or "decode offered none that this engine has")
    raise RefusedError(msg)


def use(sock: socket.socket, transport: Transport) -> None:
    """Tell decode which transport was chosen."""
    sock.sendall(frame(Use(transport=transport.name)))
