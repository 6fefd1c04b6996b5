"""Every setting of the connector: the keys of `kv_connector_extra_config`, read once. vLLM's own `kv_port` and `kv_role` stay where they are."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

MIB: Final = 1024**2
GIB: Final = 1024**3

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
TRANSPORTS: Final = ("vmm", "nccl", "tcp")


class SettingsError(ValueError):
    """A setting cannot be used; the message names it and the accepted form."""


class Debug(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fault injection for tests, and diagnostics that are too costly for normal use.

    Attributes:
        zero: send zeros instead of the KV.
        delay_s: wait before each put.
        checksum: send a CRC-32 with each part, and refuse parts whose bytes do not match.
        trace: file to which every step of every key is written, with its time.
    """

    zero: bool = False
    delay_s: float = 0.0
    checksum: bool = False
    trace: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The connector's settings.

    Attributes:
        host: address at which other engines reach this one; empty for the address that vLLM chooses (`VLLM_HOST_IP`).
        transports: transports that may be used, the best first. `vmm`: same node, over NVLink or PCIe; `nccl`: between nodes, with GPUs on both ends; `tcp`: anywhere.
        socket_folder: folder of the UNIX sockets of `vmm`; engines that share this folder can share memory.
        nccl_library: path of the NCCL library for `nccl`; empty for vLLM's (`VLLM_NCCL_SO_PATH`, or the one that torch loads).
        nccl_blocks: thread blocks of the GPU, and so multiprocessors, that one transfer of `nccl` takes at most at either end.
        landing_bytes: decode's memory for KV that arrives (GPU memory for `vmm` and `nccl`).
        staging_bytes: prefill's memory in which KV is gathered before it is sent; 0 means twice the KV of a full step.
        page_bytes: approximate KV bytes per page of either memory; rounded to whole blocks. Equal on both ends.
        load_timeout_s: seconds that decode waits for KV without any message about it, before it computes the prompt itself.
        queue_timeout_s: the same for KV that prefill has announced but not started to send.
        early_s: seconds that decode keeps KV of a request that has not come yet; at most 5 s while other KV waits for room.
        keep_s: seconds that prefill keeps KV that no engine has asked for.
        keep_fraction: share of prefill's KV cache that such KV may take; the oldest is dropped first.
        send_timeout_s: seconds that prefill keeps KV while decode has no room for it.
        hello_timeout_s: seconds until the first answer of another engine.
        join_timeout_s: seconds until two engines have set up NCCL for `nccl`.
        put_timeout_s: seconds until one copy is complete.
        ping_s: seconds after which a silent connection sends a ping.
        dead_after_s: seconds of silence after which an engine counts as dead.
        idle_wait_ms: milliseconds per round that an otherwise idle decode engine waits for KV.
        soon_wait_ms: most milliseconds that an otherwise idle decode engine waits within a step for KV that prefill has announced as almost computed, before the request fails; 0: it begins no step before the KV is there.
        soon_lead_ms: milliseconds before the last layer at which prefill announces KV to such decode engines.
        soon_transports: transports with which such KV is waited for: those that take a few milliseconds.
        model_tag: engines with different tags refuse each other; for models of one shape with different weights.
        debug: fault injection and diagnostics.
    """

    host: str = ""
    transports: tuple[str, ...] = TRANSPORTS
    socket_folder: str = "/tmp/pd-connector"  # noqa: S108  sockets live there, and every engine must find it
    nccl_library: str = ""
    nccl_blocks: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
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
    join_timeout_s: Seconds = 15.0
    put_timeout_s: Seconds = 10.0
    ping_s: Seconds = 1.0
    dead_after_s: Seconds = 5.0
    idle_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=20)] = 2.0
    soon_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 1000.0
    soon_lead_ms: Annotated[float, msgspec.Meta(ge=0)] = 3.0
    soon_transports: tuple[str, ...] = ("vmm",)
    model_tag: str = ""
    debug: Debug = Debug()

    def __post_init__(self) -> None:
        """Refuse invalid combinations."""
        for setting, names in (("transports", self.transports), ("soon_transports", self.soon_transports)):
            unknown = [name for name in names if name not in TRANSPORTS]
            if unknown or not self.transports:
                msg = f"`{setting}` takes {', '.join(TRANSPORTS)}; not {', '.join(unknown) or 'nothing'}"
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
