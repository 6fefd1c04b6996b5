"""A profile: every number of the model of one GPU, one engine and one network, read from a TOML file.

All times are milliseconds, all powers watts. Shipped profiles lie in `profiles/`; each says where its numbers come from.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

from pd_contracts.names import Connector

_SUFFIX = ".toml"

Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Watts = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ProfileError(ValueError):
    """A profile cannot be used; the message names it and what is wrong."""


class Prefill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a step that has prompt tokens in it: `base + per_token · tokens`."""

    base_ms: Milliseconds
    per_token_ms: Milliseconds


class Decode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a step that decodes: `base + per_sequence · batch + per_context_token · tokens the batch looks back on`."""

    base_ms: Milliseconds
    per_sequence_ms: Milliseconds
    per_context_token_ms: Milliseconds = 0.0


class Mixed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a step with both parts saves: weights are read and kernels launched once, and decodes fill up the prompt's matrices.

    The mixed step takes `prefill + decode − overlap`, where a prompt token costs `prefill_token_share` of its normal time.
    """

    overlap_ms: Milliseconds = 0.0
    prefill_token_share: Share = 1.0


class Handoff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What moving the KV of one request costs.

    Attributes:
        send_floor_ms: prefill's step takes at least this long a request that it sends; the transfer's hand-shakes run beside the compute.
        send_tail_ms, send_tail_per_token_ms: what comes after the compute, still inside prefill's step.
        wait_ms, wait_per_token_ms: from the moment that decode may fetch the bytes until the request may join the batch; only this
            request waits.
        stall_ms, stall_per_token_ms: loading that happens inside decode's step, so that the whole batch stands still.
        receive_ms, receive_per_token_ms: P2pNcclConnector alone: decode's listener takes one request's KV after another, whoever sends it,
            from the moment that prefill computes it; prefill's step does not end before its KV is taken.
    """

    send_floor_ms: Milliseconds = 0.0
    send_tail_ms: Milliseconds = 0.0
    send_tail_per_token_ms: Milliseconds = 0.0
    wait_ms: Milliseconds = 0.0
    wait_per_token_ms: Milliseconds = 0.0
    stall_ms: Milliseconds = 0.0
    stall_per_token_ms: Milliseconds = 0.0
    receive_ms: Milliseconds = 0.0
    receive_per_token_ms: Milliseconds = 0.0


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the board draws: idle, while it computes prompts, and while it decodes (linear in the batch up to `decode_full_batch`)."""

    idle_w: Watts
    prefill_w: Watts
    decode_min_w: Watts
    decode_max_w: Watts
    decode_full_batch: Count
    limit_w: Watts
    idle_clock_mhz: int
    clock_mhz: int
    memory_clock_mhz: int
    ambient_c: float = 26.0
    degrees_per_watt: float = 0.06

    def __post_init__(self) -> None:
        """Idle must be the lowest state: a reading between two steps counts as idle until the next step is known (see `board`)."""
        if self.idle_w > min(self.prefill_w, self.decode_min_w) or self.decode_min_w > self.decode_max_w:
            msg = "power: expected idle_w <= prefill_w and idle_w <= decode_min_w <= decode_max_w"
            raise ValueError(msg)


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The board's memory in bytes, and what a token's KV takes of it in the model that is simulated."""

    total_bytes: Count
    weights_bytes: Count
    kv_bytes_per_token: Count
    kv_tokens: Count


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole profile.

    Attributes:
        description: where the numbers come from, in a sentence.
        board: the board's name, without the word "simulated".
        api_ms: from a request's arrival until the scheduler sees it (parsing, tokenising, crossing to the engine process).
        batched: P2pNcclConnector with KV_BATCHED, in place of its entry in `handoff`; prefill's step does not wait for the listener.
        eos_one_in: one token in so many ends the output by itself; 0 for never.
        async_scheduling: a step is planned while the one before it runs.
    """

    description: str
    board: str
    prefill: Prefill
    decode: Decode
    power: Power
    memory: Memory
    mixed: Mixed = Mixed()
    handoff: dict[Connector, Handoff] = {}
    batched: Handoff = Handoff()
    async_scheduling: bool = False
    api_ms: Milliseconds = 0.0
    eos_one_in: Annotated[int, msgspec.Meta(ge=0)] = 0


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    folder = resources.files(__package__) / "profiles"
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))


def load_profile(name: str) -> Profile:
    """Read a shipped profile by name, or any profile by path (anything that ends in `.toml`).

    Raises:
        ProfileError: if there is none, or a value in it does not fit.
    """
    if not name.endswith(_SUFFIX) and name not in shipped():
        msg = f"no profile {name!r}: expected one of {', '.join(shipped())}, or the path of a TOML file"
        raise ProfileError(msg)
    try:
        if name.endswith(_SUFFIX):
            text = Path(name).read_text(encoding="utf-8")
        else:
            text = (resources.files(__package__) / "profiles" / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
        return msgspec.convert(tomllib.loads(text), Profile)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        msg = f"profile {name}: {error}"
        raise ProfileError(msg) from error
