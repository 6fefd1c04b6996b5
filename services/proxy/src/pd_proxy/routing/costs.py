"""What steps cost on the engines: the numbers of a profile that predictions are made of. Pure.

A step that computes prompts takes `base + per_token · tokens + per_pair · pairs`, one that decodes `base + per_sequence · batch +
per_context_token · tokens that the batch looks back on`, one that does both the sum less an overlap, with cheaper prompt tokens.
"""

from dataclasses import dataclass

import msgspec

from pd_contracts import profiles
from pd_contracts.names import Connector


class CostsError(ValueError):
    """No costs can be read from the profile; the message names it."""


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
    """What of a profile matters here."""

    prefill: _Prompts
    decode: _Decodes
    combined: _Decodes | None = None
    mixed: _Mixed = _Mixed()
    handoff: dict[str, _Handover] = {}
    api_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds, but for the last two.

    Attributes:
        prompt_token, prompt_pair: of a prompt token, and of a pair of one and another that it looks back on.
        overlap: what a step with prompts and decodes saves.
        api: from a request's arrival at an engine until its scheduler sees it.
        handover, handover_token: from prefill's answer until decode may run the request.
        beside_share: what a prompt token costs beside decodes, of what it costs alone.
        budget: most tokens in one step of an engine (MAX_NUM_BATCHED_TOKENS).
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
    beside_share: float = 1.0
    budget: int = 8192

    def alone_ms(self, tokens: float) -> float:
        """A prompt on an engine that decodes nothing."""
        return self._tokens_ms(tokens, 1.0) + self.prompt_base * tokens / self.budget

    def beside_ms(self, tokens: float) -> float:
        """What a prompt's tokens add to steps that decode as well."""
        return self._tokens_ms(tokens, self.beside_share)

    def decode_ms(self, sequences: float, context: float) -> float:
        """A step that decodes, with `context` tokens behind its sequences."""
        return self.decode_base + self.decode_sequence * sequences + self.decode_context * context

    def handover_ms(self, tokens: float) -> float:
        """The hand-over of a prompt's KV, with the hop to decode."""
        return self.api + self.handover + self.handover_token * tokens

    def _tokens_ms(self, tokens: float, share: float) -> float:
        return self.prompt_token * share * tokens + self.prompt_pair * tokens * tokens / 2


def read_costs(profile: str, connector: Connector, *, margin: float, budget: int) -> Costs:
    """The costs that a profile (see `pd_contracts.profiles`) gives, each multiplied by `margin`.

    To believe that steps are shorter than they are is worse than the contrary: engines get more than they can do in time.

    Raises:
        CostsError: if there is no such profile, or it lacks one of the numbers.
    """
    try:
        read = msgspec.convert(profiles.document(profile), _Profile)
    except (profiles.ProfileError, msgspec.ValidationError) as error:
        msg = f"STEP_PROFILE={profile!r} cannot be used: {error}"
        raise CostsError(msg) from error
    decode, move = read.combined or read.decode, read.handoff.get(connector, _Handover())
    return Costs(
        prompt_base=margin * read.prefill.base_ms,
        prompt_token=margin * read.prefill.per_token_ms,
        prompt_pair=margin * read.prefill.per_pair_ns * 1e-6,
        decode_base=margin * decode.base_ms,
        decode_sequence=margin * decode.per_sequence_ms,
        decode_context=margin * decode.per_context_token_ms,
        overlap=margin * read.mixed.overlap_ms,
        api=margin * read.api_ms,
        handover=margin * (move.send_tail_ms + move.wait_ms + move.stall_ms + move.receive_ms),
        handover_token=margin
        * (move.send_tail_per_token_ms + move.wait_per_token_ms + move.stall_per_token_ms + move.receive_per_token_ms),
        beside_share=read.mixed.prefill_token_share,
        budget=budget,
    )
