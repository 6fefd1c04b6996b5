"""What a doubt is."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a doubt weighs."""

    STOP = "do not decide on this"
    CARE = "read with care"


@dataclass(frozen=True)
class Doubt:
    """One reason to doubt, and what to do about it."""

    level: Level
    sentence: str
    remedy: str
