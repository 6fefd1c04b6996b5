"""The data for decisions: the engines' load as the proxy knows it from its own requests, and the traffic. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

# The assumed length of answers before one has ended, in tokens.
FIRST_GUESS: Final = 128.0


@dataclass(frozen=True, slots=True)
class Objectives:
    """Service level objectives in milliseconds; infinite if not set."""

    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One engine's load.

    Attributes:
        sequences: answers that it decodes, or will decode because their requests were sent there.
        context: the sum of their context tokens: prompts and output so far.
        queue_ms: the time still needed for the prompts that were sent there.
        prompts_ms: the recent cost of prompts there; it decays within the time of an answer.
        room: tokens of its KV cache that are still free when all these answers are complete; infinite if its size is not known.
    """

    sequences: int = 0
    context: float = 0.0
    queue_ms: float = 0.0
    prompts_ms: float = 0.0
    room: float = inf


IDLE: Final = EngineLoad()


@dataclass(frozen=True, slots=True)
class Traffic:
    """The incoming traffic.

    Attributes:
        answer: mean length of answers, tokens; `short_answer`: their lower quartile.
        rate: requests per millisecond; `tokens`: their prompts' tokens per millisecond.
        work, work_squared: the cost of these prompts in steps with decodes, ms per ms, and the sum of its squares.
        lasting_rate, lasting_tokens: as `rate` and `tokens`, but over a time that is longer than a burst.
    """

    answer: float = FIRST_GUESS
    short_answer: float = FIRST_GUESS
    rate: float = 0.0
    tokens: float = 0.0
    work: float = 0.0
    work_squared: float = 0.0
    lasting_rate: float = 0.0
    lasting_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """The state at one moment; engines by number.

    Attributes:
        correction: factor on the TPOT objective in decisions; below 1 after answers that missed it.
        overload: for some time, many requests have been predicted to miss an objective, whether they were rejected or not.
    """

    engines: Mapping[int, EngineLoad]
    traffic: Traffic
    objectives: Objectives
    correction: float = 1.0
    overload: bool = True

    def of(self, engine: int) -> EngineLoad:
        return self.engines.get(engine, IDLE)

    def fits(self, engine: int, prompt: int) -> bool:
        """Whether one more answer to a prompt of so many tokens fits into the engine's KV cache, which would otherwise delay it."""
        load = self.of(engine)
        return not load.sequences or prompt + self.traffic.answer <= load.room
