"""The messages between two engines, as msgpack maps with their name in `type`.

Every connection begins with `Hello` and its answer. A connection has one purpose: on a `push` connection, which prefill opens to
decode, go `Part`, `Token`, `Fail`, `Need` and `Return` one way, and `Credit`, `Revoke` and `Drop` the other; on an `ask` connection, which decode
opens to prefill, go `Want` and `Drop` one way, and `Have` and `Fail` the other; a `data` connection carries bytes for the TCP transport, with `Write`
before them and `Written` in return.
"""

from typing import Final, Literal, TypeAlias

import msgspec

VERSION: Final = 1
# A message is small; whoever announces more speaks something else.
MAX_MESSAGE_BYTES: Final = 1 << 22

Purpose = Literal["push", "ask", "data"]


class ProtocolError(ConnectionError):
    """The peer does not speak this protocol, or breaks its rules; the connection ends."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """What all messages have: the name of their class, in small letters, as `type`."""


class Hello(_Message, frozen=True, kw_only=True):
    """The first message of whoever opened the connection.

    Attributes:
        boot: random, of this process: after a restart on the same address it differs.
        address: where this engine listens.
        schema: what must be equal on both ends (`wire.schema`).
        transports: ways to move KV that this engine can use, the best first.
        session: of a `data` connection: the push connection that it belongs to, as its `Welcome` said.
    """

    version: int = VERSION
    purpose: Purpose
    boot: str
    address: str
    rank: int = 0
    schema: dict[str, str] = {}
    transports: list[str] = []
    session: str = ""


class Offer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way in which decode can be given KV, and what the transport needs to know."""

    transport: str
    details: dict[str, str] = {}


class Welcome(_Message, frozen=True, kw_only=True):
    """The answer to `Hello`: the connection stands.

    Attributes:
        session: names this connection to the sockets that a transport opens beside it.
        offers: of a push connection: the ways that both ends know; prefill takes the first that works and says `Use`.
        page_bytes: of a push connection: how much KV one page of decode's landing memory takes.
    """

    boot: str
    session: str = ""
    offers: list[Offer] = []
    page_bytes: int = 0


class Refusal(_Message, frozen=True, kw_only=True):
    """The answer to `Hello` from an engine that cannot work with that one; the connection ends."""

    reason: str


class Use(_Message, frozen=True, kw_only=True):
    """Prefill's choice among the offers; credit comes after it."""

    transport: str


class Credit(_Message, frozen=True, kw_only=True):
    """Pages of decode's landing memory that prefill alone may write from now on."""

    pages: list[int]


class Need(_Message, frozen=True, kw_only=True):
    """So many more pages than it has credit for are wanted by prefill now."""

    pages: int


class Revoke(_Message, frozen=True, kw_only=True):
    """Decode asks for so many unused pages back."""

    pages: int


class Return(_Message, frozen=True, kw_only=True):
    """Unused pages that prefill gives back."""

    pages: list[int]


class Part(_Message, frozen=True, kw_only=True):
    """Some blocks of a key are in these pages, whole.

    Attributes:
        key: which KV, as `wire.params.kv_key` makes it.
        first: index of the first of these blocks in the prompt.
        count: so many blocks.
        total: blocks of the whole prompt.
        pages: where they are, in order; every page but the last is full.
        size: bytes in these pages together.
        checksum: CRC-32 of the bytes, if the sender was told to make one.
    """

    key: str
    first: int
    count: int
    total: int
    pages: list[int]
    size: int
    checksum: int | None = None


class Write(_Message, frozen=True, kw_only=True):
    """On a `data` connection: the bytes of these pages follow, one page after the other."""

    pages: list[int]
    sizes: list[int]


class Written(_Message, frozen=True, kw_only=True):
    """On a `data` connection: the bytes of the last `Write` are in their pages."""


class Token(_Message, frozen=True, kw_only=True):
    """The first token that prefill sampled for a key.

    Attributes:
        ended: the answer ends with it.
    """

    key: str
    token: int
    ended: bool = False


class Fail(_Message, frozen=True, kw_only=True):
    """The KV of this key will not come; why."""

    key: str
    reason: str


class Want(_Message, frozen=True, kw_only=True):
    """Decode waits for this key; it is to be sent to this address."""

    key: str
    to: str


class Drop(_Message, frozen=True, kw_only=True):
    """Nobody wants this key any more."""

    key: str


class Have(_Message, frozen=True, kw_only=True):
    """The answer to `Want`: this engine knows the key.

    Attributes:
        boot: of the engine that the KV goes or went to; empty if it did not go anywhere yet.
        sent: all of it has gone.
    """

    key: str
    boot: str = ""
    sent: bool = False


class Ping(_Message, frozen=True, kw_only=True):
    """This end lives. Sent when nothing else was for a while; any message counts as a sign of life."""


Message: TypeAlias = (
    Hello
    | Welcome
    | Refusal
    | Use
    | Credit
    | Need
    | Revoke
    | Return
    | Part
    | Write
    | Written
    | Token
    | Fail
    | Want
    | Drop
    | Have
    | Ping
)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Write a message, without its length."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Read a message.

    Raises:
        ProtocolError: for anything else.
    """
    try:
        message: Message = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        msg = f"not a message: {error}"
        raise ProtocolError(msg) from error
    return message
