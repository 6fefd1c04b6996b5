"""Engines of a deployment and what is asked of them, for virtual time."""

from dataclasses import dataclass
from enum import StrEnum
from math import lcm

from pd_contracts.names import Connector, Role
from pd_simulator.kv_blocks import BLOCK_TOKENS, blocks_of
from pd_simulator.profile import Profile
from pd_simulator.steps.scheduler import Limits


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: seconds, tokens; `cached` prompt tokens lie in the prefix cache of the engine that computes the prompt."""

    at: float
    prompt_tokens: int
    output_tokens: int
    cached: int = 0


class Refusal(str):
    """Why a request could never be served, empty if it can be; its message and what fills its holes are kept for other languages."""

    message: str
    holes: dict[str, object]

    def __new__(cls, message: str = "", /, **holes: object) -> "Refusal":
        text = super().__new__(cls, message.format(**holes))
        text.message, text.holes = message, holes
        return text


class Order(StrEnum):
    """When decode hears of a request, and who writes the first token; only P2pConnector can do other than the first.

    The proxy's settings: AFTER is DECODE_ASKED=after_prefill, AT_ONCE is at_once with FIRST_TOKEN=decode, HAND_OFF with FIRST_TOKEN=prefill.
    """

    AFTER = "after_prefill"
    AT_ONCE = "at_once"
    HAND_OFF = "hand_off"


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines of a deployment; `prefills` 0 means plain ones, `others` are those that decode, `batched` as in `Profile`.

    Limits are vLLM's options of the same names; `kv_tokens` is the room of one engine's KV cache.
    """

    prefills: int
    others: int
    connector: Connector | None
    kv_tokens: int
    batched: bool = False
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    order: Order = Order.AFTER

    def __post_init__(self) -> None:
        """As vLLM: every sequence gets its token in every step."""
        if self.order is not Order.AFTER and self.connector is not Connector.P2P:
            msg = f"order {self.order}: with {self.connector or 'plain engines'} decode gets a request after prefill"
            raise ValueError(msg)
        if self.max_num_batched_tokens < self.max_num_seqs:
            msg = f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs})"
            raise ValueError(msg)

    @property
    def chunked(self) -> bool:
        """Whether a prefill engine may spread a prompt over several steps; P2pNcclConnector sends it from one."""
        return self.connector is not Connector.P2P_NCCL

    @property
    def loads_again(self) -> bool:
        """Whether a preempted request finds the KV again that was not computed where it runs.

        Plain engines find it in their prefix cache. A file, and what P2P NCCL has received, stays until the request ends. NIXL and
        P2pConnector hand over once.
        """
        return self.connector not in {Connector.NIXL, Connector.P2P}

    @property
    def boards(self) -> dict[Role, int]:
        """How many engines there are of each role."""
        if not self.prefills:
            return {Role.COMBINED: self.others}
        return {Role.PREFILL: self.prefills, Role.DECODE: self.others}

    def limits(self, profile: Profile, *, chunked: bool = True) -> Limits:
        return Limits(self.max_num_seqs, self.max_num_batched_tokens, self.kv_tokens, chunked, profile.async_scheduling)

    def turn(self, number: int) -> tuple[int, int]:
        """Which prefill and which other engine serve the request of this number, as the proxy's round robin has it."""
        if not self.prefills:
            return 0, number % self.others
        return number % self.prefills, (number + number // lcm(self.prefills, self.others)) % self.others

    def refusal(self, prompt_tokens: int, output_tokens: int) -> Refusal:
        """Why a request of these lengths could never be served."""
        if blocks_of(prompt_tokens + output_tokens) > self.kv_tokens // BLOCK_TOKENS:
            return Refusal(
                "{prompt} + {output} tokens do not fit into the KV cache of {room} tokens",
                prompt=prompt_tokens,
                output=output_tokens,
                room=self.kv_tokens,
            )
        if self.prefills and not self.chunked and prompt_tokens > self.max_num_batched_tokens:
            return Refusal(
                "P2pNcclConnector computes a prompt in one step, and {prompt} tokens are more than max_num_batched_tokens ({most})",
                prompt=prompt_tokens,
                most=self.max_num_batched_tokens,
            )
        return Refusal()
