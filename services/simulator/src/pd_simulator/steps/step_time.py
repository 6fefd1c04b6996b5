"""How long a step takes: arithmetic on the profile, no clock and no state."""

from dataclasses import dataclass

from pd_contracts.names import Connector, Role
from pd_simulator.profile import Profile


@dataclass(frozen=True, slots=True)
class Sent:
    """A sequence whose KV leaves the engine at the end of a step: its prompt's tokens, and which engine it goes to."""

    tokens: int
    peer: int = 0


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes.

    Attributes:
        prefill_tokens: prompt tokens, over all sequences with more than one token in this step.
        prefill_pairs: pairs of one of these tokens and one that it looks back on.
        decodes: sequences with one token in this step: a decode, or a prompt whose other tokens came from elsewhere.
        context_tokens: tokens that these look back on, together.
        stall_s: time for which KV that is being loaded keeps the whole step waiting.
        sent: sequences whose KV leaves the engine at the end of this step.
    """

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decodes: int = 0
    context_tokens: int = 0
    stall_s: float = 0.0
    sent: tuple[Sent, ...] = ()


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step's duration in seconds, and how much of it the board computes prompts or decodes; it waits for the rest."""

    seconds: float
    prefill_s: float
    decode_s: float


class StepModel:
    """The profile's formulas for one role and connector; `launch` is what launching a step takes there."""

    def __init__(
        self, profile: Profile, connector: Connector | None, *, role: Role | None = None, batched: bool = False
    ) -> None:
        """Bind the profile; `connector` is None for an engine that hands nothing over, `batched` as in `Profile`."""
        self._profile = profile
        role = role or (Role.DECODE if connector else Role.COMBINED)
        self._decode = profile.decode_of(role)
        self.launch = profile.launch_of(role)
        self._handoff = profile.handoff_of(connector, batched=batched)

    @property
    def late_answers(self) -> bool:
        """Whether the answers of a step that sends come when the next one, if it follows at once, has ended."""
        return self._handoff.late_answers

    def step(self, work: StepWork) -> StepTime:
        prefill = self._prefill_ms(work)
        decode = self._decode_ms(work)
        if prefill and decode:
            prefill = max(0.0, prefill - self._profile.mixed.overlap_ms)
        sending = self._send_ms(work, prefill + decode)
        return StepTime(
            seconds=(prefill + decode + sending) / 1e3 + work.stall_s,
            prefill_s=prefill / 1e3,
            decode_s=decode / 1e3,
        )

    def wait_s(self, tokens: int) -> float:
        """Seconds for which a request whose KV of `tokens` comes from elsewhere waits, alone, before it may join the batch."""
        return (self._handoff.wait_ms + self._handoff.wait_per_token_ms * tokens) / 1e3

    def at_once_s(self, tokens: int) -> float:
        """Seconds from prefill's end until a request that decode heard of before may join the batch."""
        return (self._handoff.at_once_ms + self._handoff.at_once_per_token_ms * tokens) / 1e3

    @property
    def first_token_s(self) -> float:
        """Seconds from prefill's end until the client has prefill's token."""
        return self._handoff.first_token_ms / 1e3

    def stall_s(self, tokens: int) -> float:
        """Seconds for which loading that KV holds up the step that admits the request."""
        noticed = max(0.0, tokens - self._handoff.stall_free_tokens)
        return (self._handoff.stall_ms + self._handoff.stall_per_token_ms * noticed) / 1e3

    def receive_s(self, tokens: int) -> float:
        """Seconds for which a decode engine is busy with taking the KV of one request."""
        return (self._handoff.receive_ms + self._handoff.receive_per_token_ms * tokens) / 1e3

    def _prefill_ms(self, work: StepWork) -> float:
        if not work.prefill_tokens:
            return 0.0
        cost = self._profile.prefill
        share = self._profile.mixed.prefill_token_share if work.decodes else 1.0
        return (
            cost.base_ms
            + cost.per_token_ms * share * work.prefill_tokens
            + cost.per_pair_ns * 1e-6 * work.prefill_pairs
        )

    def _decode_ms(self, work: StepWork) -> float:
        if not work.decodes:
            return 0.0
        cost = self._decode
        return cost.base_ms + cost.per_sequence_ms * work.decodes + cost.per_context_token_ms * work.context_tokens

    def _send_ms(self, work: StepWork, computing_ms: float) -> float:
        """What sending adds to the step: the hand-shakes that the compute does not cover, then the tail."""
        if not work.sent:
            return 0.0
        handoff, further = self._handoff, len({sent.peer for sent in work.sent}) - 1
        each = handoff.send_floor_ms + handoff.send_floor_per_peer_ms * further
        floor = handoff.send_floor_per_step_ms + each * len(work.sent)
        tail = handoff.send_tail_ms + handoff.send_tail_per_token_ms * sum(sent.tokens for sent in work.sent)
        return max(0.0, floor - computing_ms) + tail
