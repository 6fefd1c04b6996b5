"""What vLLM planned where KV did not suffice, step by step (`facts/preemptions.json`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

ROOM, SEQUENCES, STEP_TOKENS = 160 * 16, 64, 2048


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A request: the first step that could see it, its tokens, and the steps of its first and last token and of its preemptions."""

    seen: int
    prompt: int
    output: int
    first: int
    last: int
    preempted: list[int]


class Planned(msgspec.Struct, frozen=True):
    """One run; `tokens` were computed in all of its steps."""

    async_scheduling: bool
    steps: int
    tokens: int
    requests: list[Asked]


class _Facts(msgspec.Struct, frozen=True):
    about: str
    runs: list[Planned]


@dataclass(frozen=True)
class Steps:
    """What another scheduler made of a run: steps of first tokens, of last ones and of preemptions, by request, and the tokens computed."""

    first: Sequence[int]
    last: Sequence[int]
    preempted: Sequence[Sequence[int]]
    tokens: int


def recorded() -> list[Planned]:
    """Two runs whose steps were planned one after the other, and two whose steps were planned while the step before ran."""
    path = Path(__file__).parent / "facts" / "preemptions.json"
    return msgspec.json.decode(path.read_bytes(), type=_Facts).runs


def steps_of(run: Planned) -> Steps:
    """What vLLM planned."""
    asked = run.requests
    return Steps([a.first for a in asked], [a.last for a in asked], [a.preempted for a in asked], run.tokens)
