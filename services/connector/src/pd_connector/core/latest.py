"""Maps that keep their latest entries only."""

from collections import OrderedDict
from typing import TypeVar

V = TypeVar("V")


def forget_oldest(entries: OrderedDict[str, V], most: int) -> None:
    """Forget what came first, until `most` entries are left."""
    while len(entries) > most:
        entries.popitem(last=False)
