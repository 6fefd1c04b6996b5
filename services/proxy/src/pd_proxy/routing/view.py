"""What decisions are made from: the engines' work as the proxy knows it from its own requests, and the traffic. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Before any answer has ended, answers are taken to be so long, tokens.
FIRST_GUESS: Final = 128.0


@dataclass(frozen=True, slots=True)
class Objectives:
    """Service level objectives, milliseconds; infinite where there is none."""

    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One engine's work.

    Attributes:
        sequences: answers that it writes, or will write: their requests were sent there.
        context: tokens behind these: their prompts, and what they have written so far.
        queue_ms: how long it still takes to compute the prompts that were sent there.
        prompts_ms: what prompts cost there, of late: it decays within the time of an answer.
    """

    sequences: int = 0
    context: float = 0.0
    queue_ms: float = 0.0
    prompts_ms: float = 0.0


IDLE: Final = EngineLoad()


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes in.

    Attributes:
        answer: mean length of answers, tokens; `short_answer`: a quarter of them is shorter.
        rate: requests per millisecond; `tokens`: their prompts' tokens per millisecond.
        work, work_squared: what these prompts cost beside decodes, milliseconds per millisecond, and the sum of the squares.
    """

    answer: float = FIRST_GUESS
    short_answer: float = FIRST_GUESS
    rate: float = 0.0
    tokens: float = 0.0
    work: float = 0.0
    work_squared: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """Everything at one moment; engines by number.

    Attributes:
        correction: what the TPOT objective is multiplied by in decisions: below 1 after answers that missed it.
    """

    engines: Mapping[int, EngineLoad]
    traffic: Traffic
    objectives: Objectives
    correction: float = 1.0

    def of(self, engine: int) -> EngineLoad:
        return self.engines.get(engine, IDLE)
