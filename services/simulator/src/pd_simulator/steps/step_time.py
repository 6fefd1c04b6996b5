"""How long a step takes: arithmetic on the profile, no clock and no state."""

from dataclasses import dataclass

from pd_contracts.names import Connector
from pd_simulator.profile import Handoff, Profile


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes.

    Attributes:
        prefill_tokens: prompt tokens, over all sequences with more than one token in this step.
        decodes: sequences with one token in this step: a decode, or a prompt whose other tokens came from elsewhere.
        context_tokens: tokens that these look back on, together.
        stall_s: time for which KV that is being loaded keeps the whole step waiting.
        sent_tokens: prompt length of each sequence whose KV leaves the engine at the end of this step.
    """

    prefill_tokens: int = 0
    decodes: int = 0
    context_tokens: int = 0
    stall_s: float = 0.0
    sent_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step's duration in seconds, and how much of it is prompt work (the board draws more for that)."""

    seconds: float
    prefill_s: float
    decode_s: float


class StepModel:
    """The profile's formulas for one connector."""

    def __init__(self, profile: Profile, connector: Connector | None, *, batched: bool = False) -> None:
        """Bind the profile; `connector` is None for an engine that hands nothing over, `batched` is KV_BATCHED."""
        self._profile = profile
        self._handoff = profile.handoff.get(connector, Handoff()) if connector else Handoff()
        if batched and connector is Connector.P2P_NCCL:
            self._handoff = profile.batched

    def step(self, work: StepWork) -> StepTime:
        """Time of one step."""
        prefill = self._prefill_ms(work)
        decode = self._decode_ms(work)
        if prefill and decode:
            prefill = max(0.0, prefill - self._profile.mixed.overlap_ms)
        prefill += self._send_ms(work, prefill)
        return StepTime(
            seconds=(prefill + decode) / 1e3 + work.stall_s,
            prefill_s=prefill / 1e3,
            decode_s=decode / 1e3,
        )

    def wait_s(self, tokens: int) -> float:
        """Seconds for which a request whose KV of `tokens` comes from elsewhere waits, alone, before it may join the batch."""
        return (self._handoff.wait_ms + self._handoff.wait_per_token_ms * tokens) / 1e3

    def stall_s(self, tokens: int) -> float:
        """Seconds for which loading that KV holds up the step that admits the request."""
        return (self._handoff.stall_ms + self._handoff.stall_per_token_ms * tokens) / 1e3

    def receive_s(self, tokens: int) -> float:
        """Seconds for which decode's listener is busy with the KV of one request."""
        return (self._handoff.receive_ms + self._handoff.receive_per_token_ms * tokens) / 1e3

    def _prefill_ms(self, work: StepWork) -> float:
        if not work.prefill_tokens:
            return 0.0
        share = self._profile.mixed.prefill_token_share if work.decodes else 1.0
        return self._profile.prefill.base_ms + self._profile.prefill.per_token_ms * share * work.prefill_tokens

    def _decode_ms(self, work: StepWork) -> float:
        if not work.decodes:
            return 0.0
        cost = self._profile.decode
        return cost.base_ms + cost.per_sequence_ms * work.decodes + cost.per_context_token_ms * work.context_tokens

    def _send_ms(self, work: StepWork, computing_ms: float) -> float:
        """What sending adds to the step: the hand-shakes that the compute does not cover, then each request's tail."""
        handoff = self._handoff
        uncovered = max(0.0, handoff.send_floor_ms * len(work.sent_tokens) - computing_ms)
        tails = sum(handoff.send_tail_ms + handoff.send_tail_per_token_ms * tokens for tokens in work.sent_tokens)
        return uncovered + tails
