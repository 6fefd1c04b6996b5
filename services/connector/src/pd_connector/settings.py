"""Every setting of the connector: the keys of `kv_connector_extra_config`, read once. vLLM's own `kv_port` and `kv_role` stay where they are."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

MIB: Final = 1024**2
GIB: Final = 1024**3

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
TRANSPORTS: Final = ("vmm", "tcp")


class SettingsError(ValueError):
    """A setting cannot be used; the message names it and the accepted form."""


class Debug(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faults on purpose, for tests that must be able to fail, and what else is too dear or too much for every day.

    Attributes:
        zero: send zeros instead of the KV.
        delay_s: wait before each put.
        checksum: send a CRC-32 with each part, and refuse parts whose bytes have another.
        trace: file to which every step of every key is written, with its time.
    """

    zero: bool = False
    delay_s: float = 0.0
    checksum: bool = False
    trace: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The connector's settings.

    Attributes:
        host: address under which other engines reach this one; empty for vLLM's own idea of it (`VLLM_HOST_IP`).
        transports: ways to move KV that may be used, the best first. `vmm`: same node, over NVLink or PCIe; `tcp`: anywhere.
        socket_folder: where `vmm` has its UNIX sockets; engines that share this folder share memory.
        landing_bytes: memory that decode keeps for KV on its way (of the GPU for `vmm`).
        staging_bytes: memory in which prefill gathers KV before it is sent; 0 for twice the KV of a full step.
        page_bytes: about how much KV a page of either memory takes; rounded to whole blocks. Equal on both ends.
        load_timeout_s: decode waits so long for KV without any sign of it from prefill, then computes the prompt itself.
        queue_timeout_s: and so long for KV that prefill knows of, and has not begun to send.
        early_s: decode keeps KV so long for a request that it has not heard of; while other KV waits for room, 5 s at most.
        keep_s: prefill keeps KV so long that nobody has asked for.
        keep_fraction: share of prefill's KV cache that such KV may take; the oldest is dropped first.
        send_timeout_s: prefill tries so long to get rid of KV whose decode has no room.
        hello_timeout_s: until the first answer of another engine.
        put_timeout_s: until one copy is through.
        ping_s: a connection is never silent for longer.
        dead_after_s: an engine that was silent for so long is dead.
        idle_wait_ms: while nothing else runs, a decode engine that waits for KV looks for it so long at a stretch.
        model_tag: engines with different tags refuse each other: for models of one shape with different weights.
        debug: faults on purpose.
    """

    host: str = ""
    transports: tuple[str, ...] = TRANSPORTS
    socket_folder: str = "/tmp/pd-connector"  # noqa: S108  sockets live there, and every engine must find it
    landing_bytes: Annotated[int, msgspec.Meta(gt=0)] = 4 * GIB
    staging_bytes: Bytes = 0
    page_bytes: Annotated[int, msgspec.Meta(gt=0)] = 8 * MIB
    load_timeout_s: Seconds = 30.0
    queue_timeout_s: Seconds = 300.0
    early_s: Seconds = 60.0
    keep_s: Seconds = 60.0
    keep_fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    send_timeout_s: Seconds = 60.0
    hello_timeout_s: Seconds = 5.0
    put_timeout_s: Seconds = 10.0
    ping_s: Seconds = 1.0
    dead_after_s: Seconds = 5.0
    idle_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=20)] = 2.0
    model_tag: str = ""
    debug: Debug = Debug()

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work."""
        if "nccl" in self.transports:
            msg = "`transports`: there is no `nccl` yet; between nodes KV goes over `tcp`, so leave it out"
            raise ValueError(msg)
        unknown = [name for name in self.transports if name not in TRANSPORTS]
        if unknown or not self.transports:
            msg = f"`transports` takes {', '.join(TRANSPORTS)}; not {', '.join(unknown) or 'nothing'}"
            raise ValueError(msg)
        if self.dead_after_s <= 2 * self.ping_s:
            msg = f"`dead_after_s` ({self.dead_after_s:g}) must be more than twice `ping_s` ({self.ping_s:g})"
            raise ValueError(msg)


def load(extra_config: Mapping[str, Any]) -> Settings:
    """Read `kv_connector_extra_config`.

    Raises:
        SettingsError: for the first invalid value or unknown key.
    """
    try:
        return msgspec.convert(dict(extra_config), Settings, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        msg = f"kv_connector_extra_config of P2pConnector: {error}"
        raise SettingsError(msg) from error
