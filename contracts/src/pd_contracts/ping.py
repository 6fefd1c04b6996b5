"""The ping with which an engine announces itself, as vLLM's P2pNcclConnector sends it.

A msgpack map over a ZMQ DEALER whose identity is `zmq_address`, every 3 s, to the proxy's ROUTER:
`{"type": "P"|"D", "http_address": "ip:port", "zmq_address": "ip:port"}`
(vLLM 0.23.0, `kv_connector/v1/p2p/p2p_nccl_engine.py`). pdstack adds type "C" for engines that do both phases, and optional
keys that vLLM does not send. Unknown keys are ignored, so either side may be the older one.
"""

import re
from enum import StrEnum
from typing import Final

import msgspec

from pd_contracts.names import Connector, Role

PING_INTERVAL_S: Final = 3.0
MAX_PING_BYTES: Final = 4096
_ADDRESS = re.compile(
    r"(?:\d{1,3}(?:\.\d{1,3}){3}|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):(\d{1,5})", re.ASCII
)


class PingError(ValueError):
    """The bytes are no ping; the message says what is wrong with them."""


class PingType(StrEnum):
    """The wire's letter for a role."""

    PREFILL = "P"
    DECODE = "D"
    COMBINED = "C"

    @property
    def role(self) -> Role:
        """The role that this letter stands for."""
        return Role[self.name]


class Ping(msgspec.Struct, frozen=True, omit_defaults=True):
    """One announcement. `zmq_address` is where KV is sent; for engines without a KV port it is any unique host:port."""

    type: PingType
    http_address: str
    zmq_address: str
    connector: Connector | None = None
    boot_id: str = ""
    model: str = ""
    engine: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        """Refuse addresses that could not be dialled, or that would break the request-id grammar."""
        for name in ("http_address", "zmq_address"):
            match = _ADDRESS.fullmatch(getattr(self, name))
            if match is None or not 0 < int(match[1]) < 65536:
                msg = f"{name} must be host:port with a port of 1 to 65535"
                raise ValueError(msg)


_decoder = msgspec.msgpack.Decoder(Ping)
_encoder = msgspec.msgpack.Encoder()


def decode_ping(data: bytes) -> Ping:
    """Read one ping.

    Raises:
        PingError: for anything else: too long, no msgpack, a missing field, an unknown type, a bad address.
    """
    if len(data) > MAX_PING_BYTES:
        msg = f"{len(data)} bytes are more than the {MAX_PING_BYTES} a ping may have"
        raise PingError(msg)
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PingError(str(error)) from error


def encode_ping(ping: Ping) -> bytes:
    """Write one ping."""
    return _encoder.encode(ping)
