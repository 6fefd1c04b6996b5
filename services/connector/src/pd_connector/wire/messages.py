"""The messages between two engines, as msgpack maps with their name in `type`.

Every connection begins with `Hello` and its answer, and has one purpose. On a `push` connection, which prefill opens to decode, prefill
sends `Part`, `Soon`, `Token`, `Fail`, `Need` and `Return`, and decode sends `Credit`, `Revoke` and `Drop`. On an `ask` connection, which decode
opens to prefill, decode sends `Want` and `Drop`, and prefill sends `Have` and `Fail`. A `data` connection belongs to a transport that needs
one. For `tcp` it carries bytes: `Write` precedes them, and `Written` is the answer. For `nccl`, `Join` and `Joined` come first, and the bytes
that follow a `Write` go another way.
"""

from typing import Final, Literal, TypeAlias

import msgspec

VERSION: Final = 1
# Messages are small; a longer one means that the peer speaks another protocol.
MAX_MESSAGE_BYTES: Final = 1 << 22

Purpose = Literal["push", "ask", "data"]


class ProtocolError(ConnectionError):
    """The peer does not speak this protocol, or breaks its rules; the connection ends."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """The base of all messages: `type` is the name of the class in lower case."""


class Hello(_Message, frozen=True, kw_only=True):
    """The first message from the end that opened the connection.

    Attributes:
        boot: random id of this process; it differs after a restart at the same address.
        address: where this engine listens.
        schema: what must be equal on both ends (`wire.schema`).
        transports: transports that this engine can use, the best first; for a `data` connection, the one that it is for.
        session: for a `data` connection, the push connection that it belongs to, from its `Welcome`.
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
    """A transport over which decode can receive KV, with what its other end needs to know."""

    transport: str
    details: dict[str, str] = {}


class Welcome(_Message, frozen=True, kw_only=True):
    """The answer to `Hello`: the connection is accepted.

    Attributes:
        session: the name of this connection for sockets that a transport opens in addition.
        offers: on a push connection, the transports that both ends have; prefill takes the first that works and sends `Use`.
        page_bytes: on a push connection, bytes of KV per page of decode's landing memory.
        soon: on a push connection, the transports with which decode wants to hear `Soon`.
    """

    boot: str
    session: str = ""
    offers: list[Offer] = []
    page_bytes: int = 0
    soon: tuple[str, ...] = ()


class Refusal(_Message, frozen=True, kw_only=True):
    """The answer to `Hello` from an engine that cannot work with the other one; the connection ends."""

    reason: str


class Use(_Message, frozen=True, kw_only=True):
    """Prefill's choice among the offers; credit follows."""

    transport: str


class Credit(_Message, frozen=True, kw_only=True):
    """Pages of decode's landing memory that prefill alone may write from now on."""

    pages: list[int]


class Need(_Message, frozen=True, kw_only=True):
    """Prefill asks for `count` pages beyond its credit."""

    pages: int


class Revoke(_Message, frozen=True, kw_only=True):
    """Decode asks for `count` unused pages back."""

    pages: int


class Return(_Message, frozen=True, kw_only=True):
    """Unused pages that prefill gives back."""

    pages: list[int]


class Part(_Message, frozen=True, kw_only=True):
    """Blocks of a key are now complete in these pages.

    Attributes:
        key: the KV's key, from `wire.params.kv_key`.
        first: index of the first of these blocks in the prompt.
        count: number of blocks.
        total: blocks of the whole prompt.
        pages: the pages with the blocks, in order; every page but the last is full.
        size: bytes in all these pages.
        checksum: CRC-32 of the bytes, if `debug.checksum` is set at the sender.
    """

    key: str
    first: int
    count: int
    total: int
    pages: list[int]
    size: int
    checksum: int | None = None


class Soon(_Message, frozen=True, kw_only=True):
    """All of this key's KV is about to come: its last layers are being computed. Only for decode engines that asked for it in `Welcome`."""

    key: str


class Join(_Message, frozen=True, kw_only=True):
    """On a `data` connection for `nccl`: prefill is the first of two ranks with this id, and decode is to be the second."""

    id: bytes


class Joined(_Message, frozen=True, kw_only=True):
    """The answer to `Join`: bytes have come from prefill to decode."""


class Write(_Message, frozen=True, kw_only=True):
    """On a `data` connection: the bytes of these pages follow, one page after the other.

    For `nccl` an entry may be several adjacent pages: the number of the first, and the bytes of all.
    """

    pages: list[int]
    sizes: list[int]


class Written(_Message, frozen=True, kw_only=True):
    """On a `data` connection: the bytes of the last `Write` are in their pages."""


class Token(_Message, frozen=True, kw_only=True):
    """The first token that prefill sampled for a key."""

    key: str
    token: int


class Fail(_Message, frozen=True, kw_only=True):
    """The KV of this key will not come, with the reason."""

    key: str
    reason: str


class Want(_Message, frozen=True, kw_only=True):
    """Decode waits for this key; it is to be sent to this address."""

    key: str
    to: str


class Drop(_Message, frozen=True, kw_only=True):
    """This key is no longer wanted."""

    key: str


class Have(_Message, frozen=True, kw_only=True):
    """The answer to `Want`: this engine knows the key.

    Attributes:
        boot: boot id of the engine that the KV is or was sent to; empty if it was not sent yet.
        sent: all of it has been sent.
    """

    key: str
    boot: str = ""
    sent: bool = False


class Ping(_Message, frozen=True, kw_only=True):
    """A keep-alive, sent if nothing else was sent for a while. Every message counts as one."""


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
    | Soon
    | Join
    | Joined
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
    """Encode a message, without its length."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Decode a message.

    Raises:
        ProtocolError: for anything else.
    """
    try:
        message: Message = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        msg = f"not a message: {error}"
        raise ProtocolError(msg) from error
    return message
