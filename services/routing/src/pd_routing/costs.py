"""The costs of engine steps, read from a profile and used for predictions. Pure.

A prefill step takes `base + per_token · tokens + per_pair · pairs`. A decode step takes `base + per_sequence · batch +
per_context_token · context tokens of the batch`. A step that does both takes the sum less an overlap, with cheaper prompt tokens, and not
less than its launch by the engine's CPU, unless a CUDA graph holds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from pd_contracts import profiles
from pd_contracts.names import Connector

# STEP_MARGIN, unless it is set.
MARGIN: Final = 1.1


class CostsError(ValueError):
    """The profile cannot be used; the message names it."""


class _Prompts(msgspec.Struct, frozen=True):
    base_ms: float
    per_token_ms: float
    per_pair_ns: float = 0.0


class _Decodes(msgspec.Struct, frozen=True):
    base_ms: float
    per_sequence_ms: float
    per_context_token_ms: float = 0.0


class _Mixed(msgspec.Struct, frozen=True):
    overlap_ms: float = 0.0
    prefill_token_share: float = 1.0


class _Launch(msgspec.Struct, frozen=True):
    ms: list[float] = []
    tail_ms: float = 0.0
    graph_tokens: int = 512

    @property
    def step_ms(self) -> float:
        """The shortest step that is launched kernel by kernel, on average."""
        return sum(self.ms) / len(self.ms) + self.tail_ms if self.ms else 0.0


class _Handover(msgspec.Struct, frozen=True):
    send_tail_ms: float = 0.0
    send_tail_per_token_ms: float = 0.0
    wait_ms: float = 0.0
    wait_per_token_ms: float = 0.0
    stall_ms: float = 0.0
    stall_per_token_ms: float = 0.0
    receive_ms: float = 0.0
    receive_per_token_ms: float = 0.0


class _Profile(msgspec.Struct, frozen=True):
    """The numbers of a profile that are used here."""

    prefill: _Prompts
    decode: _Decodes
    combined: _Decodes | None = None
    mixed: _Mixed = _Mixed()
    launch: _Launch = _Launch()
    handoff: dict[str, _Handover] = {}
    api_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs in milliseconds, except for the last four fields.

    Attributes:
        prompt_token, prompt_pair: per prompt token, and per pair of a prompt token and an earlier one that it attends to.
        overlap: what a step with prompts and decodes takes less than both alone.
        api: from a request's arrival at an engine until its scheduler sees it.
        handover, handover_token: from prefill's answer until decode may run the request.
        launched: the shortest step with prompts and decodes that no CUDA graph holds; 0 if launching it costs nothing.
        beside_share: the cost of a prompt token in a step with decodes, as a share of its cost alone.
        budget: the most tokens in one step of an engine (MAX_NUM_BATCHED_TOKENS).
        graph_tokens: the most tokens of a step that a CUDA graph holds.
        margin: what the profile's times were multiplied by.
    """

    prompt_base: float
    prompt_token: float
    prompt_pair: float
    decode_base: float
    decode_sequence: float
    decode_context: float
    overlap: float
    api: float
    handover: float
    handover_token: float
    launched: float = 0.0
    beside_share: float = 1.0
    budget: int = 8192
    graph_tokens: int = 512
    margin: float = 1.0

    def alone_ms(self, tokens: float) -> float:
        """The time of a prompt on an engine that does not decode."""
        return self._tokens_ms(tokens, 1.0) + self.prompt_base * tokens / self.budget

    def beside_ms(self, tokens: float) -> float:
        """The time that a prompt's tokens add to steps that also decode; prompts in one step share its launch."""
        return self._tokens_ms(tokens, self.beside_share)

    def beside_with_launch_ms(self, tokens: float) -> float:
        """The same with the time that such a step waits for its launch, if no other prompt shares it."""
        added = self.beside_ms(tokens)
        return max(added, self.launched - self.decode_base) if tokens >= self.graph_tokens else added

    def decode_ms(self, sequences: float, context: float) -> float:
        """The time of a decode step; `context` is the sum of its sequences' context tokens."""
        return self.decode_base + self.decode_sequence * sequences + self.decode_context * context

    def handover_ms(self, tokens: float) -> float:
        """The time to hand over a prompt's KV, including the request to decode."""
        return self.api + self.handover + self.handover_token * tokens

    def times(self, factor: float) -> "Costs":
        """The same, if all steps take `factor` times as long."""
        return replace(self, **{name: factor * getattr(self, name) for name in _TIMES})

    def _tokens_ms(self, tokens: float, share: float) -> float:
        return self.prompt_token * share * tokens + self.prompt_pair * tokens * tokens / 2


_TIMES: Final = (
    "prompt_base",
    "prompt_token",
    "prompt_pair",
    "decode_base",
    "decode_sequence",
    "decode_context",
    "overlap",
    "api",
    "handover",
    "handover_token",
    "launched",
)


def read_costs(profile: str, connector: Connector, *, margin: float, budget: int) -> Costs:
    """The costs of a profile by its name or path (see `pd_contracts.profiles`), each multiplied by `margin`.

    Raises:
        CostsError: if there is no such profile, or a number is missing.
    """
    try:
        return costs_of(profiles.document(profile), connector, margin=margin, budget=budget)
    except (profiles.ProfileError, msgspec.ValidationError) as error:
        msg = f"STEP_PROFILE={profile!r} cannot be used: {error}"
        raise CostsError(msg) from error


def costs_of(document: Mapping[str, Any], connector: Connector, *, margin: float = MARGIN, budget: int) -> Costs:
    """The costs of a profile that was read.

    The margin is above 1, because underestimated steps are worse than overestimated ones: engines would get more than they can do in time.

    Raises:
        ValidationError: msgspec's, if a number is missing.
    """
    read = msgspec.convert(document, _Profile)
    decode, move = read.combined or read.decode, read.handoff.get(connector, _Handover())
    return Costs(
        prompt_base=read.prefill.base_ms,
        prompt_token=read.prefill.per_token_ms,
        prompt_pair=read.prefill.per_pair_ns * 1e-6,
        decode_base=decode.base_ms,
        decode_sequence=decode.per_sequence_ms,
        decode_context=decode.per_context_token_ms,
        overlap=read.mixed.overlap_ms,
        api=read.api_ms,
        handover=move.send_tail_ms + move.wait_ms + move.stall_ms + move.receive_ms,
        handover_token=move.send_tail_per_token_ms
        + move.wait_per_token_ms
        + move.stall_per_token_ms
        + move.receive_per_token_ms,
        launched=read.launch.step_ms,
        beside_share=read.mixed.prefill_token_share,
        budget=budget,
        graph_tokens=read.launch.graph_tokens,
        margin=margin,
    ).times(margin)
