"""What a doubt is."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a doubt weighs."""

    STOP = "do not decide on this"
    CARE = "read with care"


@dataclass(frozen=True)
class Doubt:
    """One reason to doubt, and what to do about it.

    Attributes:
        general: the sentence without names and numbers, for a report in which it holds for many loads; they are listed after it.
    """

    level: Level
    sentence: str
    remedy: str
    general: str = ""
