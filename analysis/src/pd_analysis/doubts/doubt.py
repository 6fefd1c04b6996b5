"""What a doubt is."""

from dataclasses import dataclass
from enum import StrEnum

from pd_analysis.words.language import mark, tr


class Level(StrEnum):
    """How much a doubt weighs."""

    STOP = mark("do not decide on this")
    CARE = mark("read with care")

    @property
    def words(self) -> str:
        """The same in the language that is spoken."""
        return tr(self.value)


@dataclass(frozen=True)
class Doubt:
    """One reason to doubt, and what to do about it.

    Attributes:
        general: the sentence without names and numbers, for a report in which it holds for many loads.
        places: the loads and deployments for which it then holds, or "".
        single: it weighs on single runs, and conclusions from several loads leave those out or take account of it.
    """

    level: Level
    sentence: str
    remedy: str
    general: str = ""
    places: str = ""
    single: bool = False
