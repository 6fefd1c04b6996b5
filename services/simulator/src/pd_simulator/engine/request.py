"""One sequence to generate, and who takes its tokens."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from pd_simulator.errors import ApiError
from pd_simulator.steps.scheduler import Job
from pd_simulator.transfer.base import Move, Plan


class Sink(Protocol):
    """Takes a request's output. It is called between steps, so it must be quick."""

    def token(self, token: int, finish_reason: str | None) -> None:
        """One output token; the last one comes with the reason ("stop" or "length")."""

    def fail(self, error: ApiError) -> None:
        """There will be no more tokens."""


@dataclass(slots=True, eq=False)
class Request:
    """One sequence to generate.

    Attributes:
        request_id: the engine's id, unique while it runs.
        arrival: monotonic time at which the HTTP request came.
        seed: of its draws; None if the output is greedy.
        written: a digest of the output so far, if that decides what follows; else empty.
        kv_transfer_params: in: what the body said; `handover`: what the response says.
    """

    request_id: str
    prompt: list[int]
    max_tokens: int
    sink: Sink
    arrival: float
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    written: bytes = b""
    kv_transfer_params: dict[str, Any] = field(default_factory=dict)
    handover: dict[str, Any] | None = None
    plan: Plan = field(default_factory=Plan)
    job: Job = field(default_factory=lambda: Job(0, 0))
    entries: bytes = b""
    output: list[int] = field(default_factory=list)
    last_time: float = 0.0
    task: asyncio.Task[None] | None = None

    def tokens(self, first: int, count: int) -> list[int]:
        """A part of the prompt and the output so far."""
        after = first - len(self.prompt)
        if after >= 0:
            return self.output[after : after + count]
        return self.prompt[first : first + count] + self.output[: max(0, after + count)]

    @property
    def move(self) -> Move:
        """The request as the transfer sees it."""
        token = self.output[-1] if self.output else None
        return Move(self.request_id, self.prompt, self.max_tokens, self.kv_transfer_params, token)
