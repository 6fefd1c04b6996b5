"""The ping with which an engine announces itself, as vLLM's P2pNcclConnector sends it.

A msgpack map over a ZMQ DEALER whose identity is `zmq_address`, every 3 s, to the proxy's discovery port:
`{"type": "P"|"D", "http_address": "ip:port", "zmq_address": "ip:port"}`
(vLLM 0.23.0, `kv_connector/v1/p2p/p2p_nccl_engine.py`). pdstack adds type "C" for engines that do both phases, "B" for those that can also hand KV over or take it, and optional
keys that vLLM does not send. Unknown keys are ignored, so either side may be the older one.

Whoever has the deployment's PING_KEY signs its pings: `time` is the sender's clock (seconds since 1970), and `mac` the HMAC-SHA256 of
the map without `mac`, written as msgpack with sorted keys. Keys that a reader does not know are signed with the rest.
"""

import hashlib
import hmac
import re
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec

from pd_contracts.names import Connector, Role

PING_INTERVAL_S: Final = 3.0
MAX_PING_BYTES: Final = 4096
MAX_NUMBER: Final = 65535
_ADDRESS = re.compile(
    r"(?:\d{1,3}(?:\.\d{1,3}){3}|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):(\d{1,5})", re.ASCII
)


class PingError(ValueError):
    """The bytes are not a ping; the message says what is wrong with them."""


class PingType(StrEnum):
    """The wire's letter for a role."""

    PREFILL = "P"
    DECODE = "D"
    COMBINED = "C"
    BOTH = "B"

    @property
    def role(self) -> Role:
        """The role that this letter stands for; an engine that hands KV over besides is combined like any other."""
        return Role.COMBINED if self is PingType.BOTH else Role[self.name]

    @property
    def moves_kv(self) -> bool:
        """Whether such engines have a connector."""
        return self is not PingType.COMBINED


def ping_type(role: Role, *, moves_kv: bool) -> PingType:
    """What an engine of this role announces."""
    return PingType.BOTH if role is Role.COMBINED and moves_kv else PingType[role.name]


class Ping(msgspec.Struct, frozen=True, omit_defaults=True):
    """One announcement.

    Attributes:
        type: the role.
        http_address: where the engine's API answers.
        zmq_address: where KV is sent; for engines without a KV port any unique host:port.
        connector: how KV travels; None for engines of type "C", and for vLLM's own pings, which do not say.
        boot_id: differs at each start of the engine.
        model: the name under which it is served.
        engine, version: what the engine is.
        gpus: UUIDs of the GPUs that it computes on, as NVML writes them.
        gpu_model: what these are, as NVML calls them.
        versions: of other parts, by name: torch, driver, connector.
        transport: how the connector moves KV, where it has several transports.
        image: the container image that the engine runs in.
        number: its place among the engines of its role, from 0; the proxy's name for it contains it, so that all use one name.
        deployment: whose engine it is.
        alike: what the engine at the other end needs alike, as this engine's command has it, by option; empty if unknown.
        time, up, mac: see `sign_ping`.
    """

    type: PingType
    http_address: str
    zmq_address: str
    connector: Connector | None = None
    boot_id: str = ""
    model: str = ""
    engine: str = ""
    version: str = ""
    gpus: tuple[str, ...] = ()
    gpu_model: str = ""
    versions: dict[str, str] = {}
    transport: str = ""
    image: str = ""
    number: Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)] | None = None
    deployment: str = ""
    alike: dict[str, str] = {}
    time: float = 0.0
    up: float = 0.0
    mac: bytes = b""

    def __post_init__(self) -> None:
        """Refuse addresses that could not be dialled, or that would break the request-id grammar."""
        for name in ("http_address", "zmq_address"):
            match = _ADDRESS.fullmatch(getattr(self, name))
            if match is None or not 0 < int(match[1]) < 65536:
                msg = f"{name} must be host:port with a port of 1 to 65535"
                raise ValueError(msg)


_decoder = msgspec.msgpack.Decoder(Ping)
_encoder = msgspec.msgpack.Encoder()
_map_decoder = msgspec.msgpack.Decoder(dict[str, Any])
_signed_encoder = msgspec.msgpack.Encoder(order="sorted")


def decode_ping(data: bytes) -> Ping:
    """Read one ping.

    Raises:
        PingError: for anything else: too long, not msgpack, a missing field, an unknown type, a bad address.
    """
    if len(data) > MAX_PING_BYTES:
        msg = f"{len(data)} bytes are more than the {MAX_PING_BYTES} a ping may have"
        raise PingError(msg)
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PingError(str(error)) from error


def encode_ping(ping: Ping) -> bytes:
    return _encoder.encode(ping)


def sign_ping(ping: Ping, key: str, now: float, up: float = 0.0) -> bytes:
    """Write one ping as the deployment's own; unsigned if `key` is empty. `now` is the time since 1970, s.

    `up` is the time on a clock that nobody sets, s: by it, the next ping of a known process is known to be new when a clock jumps.
    """
    if not key:
        return encode_ping(ping)
    fields = _map_decoder.decode(encode_ping(msgspec.structs.replace(ping, time=now, up=up, mac=b"")))
    return _encoder.encode({**fields, "mac": _mac(fields, key)})


def is_signed(data: bytes, key: str) -> bool:
    """Whether these bytes, which are a ping, were signed with the key, and nothing was changed since."""
    fields = _map_decoder.decode(data)
    mac = fields.pop("mac", b"")
    return isinstance(mac, bytes) and hmac.compare_digest(mac, _mac(fields, key))


def _mac(fields: dict[str, Any], key: str) -> bytes:
    return hmac.new(key.encode(), _signed_encoder.encode(fields), hashlib.sha256).digest()
