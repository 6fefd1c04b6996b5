"""The candidate deployments: plain engines, and every XpYd of a cell with every connector."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis.words.language import mark, ntr, tr
from pd_contracts.names import Connector
from pd_planner.profile.trust import Shape
from pd_simulator.steps.engines import Engines, Order

# Prefill and decode engines of a cell serve only each other, so that a failure stays within its cell.
LARGEST_CELL: Final = 16


# As `pdctl compare --deployments` names them, and for people.
NAMES: Final = {
    "p2p": Connector.P2P,
    "nixl": Connector.NIXL,
    "p2pnccl": Connector.P2P_NCCL,
    "example": Connector.EXAMPLE,
}
WORDS: Final = {
    Connector.P2P: "P2pConnector",
    Connector.NIXL: "NIXL",
    Connector.P2P_NCCL: "P2P NCCL",
    Connector.EXAMPLE: mark("shared folder"),
}
# Unless asked for by name: a shared folder is for engines without a network between them, and only old releases of vLLM have P2P NCCL.
USUAL: Final = (Connector.P2P, Connector.NIXL)


def name_of(connector: Connector) -> str:
    return next(name for name, known in NAMES.items() if known is connector)


@dataclass(frozen=True)
class EngineLimits:
    """vLLM's options of the same names, and the KV room of one engine in tokens; `max_model_len` is None for the model's own."""

    kv_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None

    def longest(self, model: int) -> int:
        """Tokens of a prompt and its answer at most, if the `model` takes so many (0: unknown); an engine needs room for one such request."""
        return min(self.max_model_len or model or self.kv_tokens, self.kv_tokens)


@dataclass(frozen=True)
class Candidate:
    """One cell: `prefills` of 0 means plain engines, or `adaptive` ones (ROUTING=adaptive). Each engine has `tensor_parallel` boards."""

    prefills: int
    others: int
    connector: Connector | None = None
    tensor_parallel: int = 1
    order: Order = Order.AFTER
    adaptive: bool = False

    @property
    def plain(self) -> bool:
        """Whether every engine computes its own prompts."""
        return self.prefills == 0 and not self.adaptive

    @property
    def apart(self) -> bool:
        """Whether engines compute prompts or write answers, and never both."""
        return self.prefills > 0

    @property
    def can_cache(self) -> bool:
        """Whether the engines that compute prompts may reuse KV; P2pNcclConnector sends what a step computed, and needs all of it."""
        return self.connector is not Connector.P2P_NCCL

    @property
    def gpus(self) -> int:
        return (self.prefills + self.others) * self.tensor_parallel

    @property
    def shape(self) -> str:
        """3P1D, 4 plain engines, 4 adaptive engines."""
        if self.adaptive:
            return ntr("{count} adaptive engine", "{count} adaptive engines", self.others)
        if self.plain:
            return ntr("{count} plain engine", "{count} plain engines", self.others)
        return f"{self.prefills}P{self.others}D"

    @property
    def label(self) -> str:
        """Shape, connector and boards per engine."""
        parts = [self.shape, tr(WORDS[self.connector]) if self.connector and self.apart else ""]
        parts.append(f"TP{self.tensor_parallel}" if self.tensor_parallel > 1 else "")
        return " ".join(filter(None, parts))

    @property
    def trust_shape(self) -> Shape:
        """What of it decides how far a profile can be believed."""
        return Shape(self.prefills, self.others, self.connector, adaptive=self.adaptive)

    def engines(self, limits: EngineLimits) -> Engines:
        """As the simulator takes it."""
        return Engines(
            prefills=self.prefills,
            others=self.others,
            connector=self.connector,
            kv_tokens=limits.kv_tokens,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            order=self.order,
        )


def candidates(
    cell: int, connectors: Sequence[Connector], tensor_parallel: int = 1, p2p: Order = Order.HAND_OFF
) -> Iterator[Candidate]:
    """Every deployment of at most `cell` engines; plain ones once, because a plain engine needs no other. `p2p` is P2pConnector's order."""
    yield Candidate(0, cell, None, tensor_parallel)
    for size in range(2, cell + 1):
        for prefills in range(1, size):
            for connector in connectors:
                order = p2p if connector is Connector.P2P else Order.AFTER
                yield Candidate(prefills, size - prefills, connector, tensor_parallel, order)
