"""What a doubt is."""

from dataclasses import dataclass
from enum import StrEnum

from pd_analysis.words.language import mark, tr


class Level(StrEnum):
    """How serious a doubt is."""

    STOP = mark("do not decide on this")
    CARE = mark("read with care")

    @property
    def words(self) -> str:
        """The level in words, in the current language."""
        return tr(self.value)


@dataclass(frozen=True)
class Doubt:
    """One reason to doubt, and what to do about it.

    Attributes:
        general: the sentence without names and numbers, for a report in which it holds for many loads.
        places: the loads and deployments for which it then holds, or "".
        single: it concerns single runs; conclusions from several loads leave those runs out or take account of it.
    """

    level: Level
    sentence: str
    remedy: str
    general: str = ""
    places: str = ""
    single: bool = False
