"""Titles that state the finding: the best run first, and how far the others are from it."""

from collections.abc import Callable, Iterable
from typing import Final

from pd_analysis.plots import style
from pd_analysis.words.formatting import joined
from pd_analysis.words.language import tr

MOST: Final = 3  # runs that fit into a title


def best_first(values: Iterable[tuple[str, float | None]], text: Callable[[float], str], *, less: bool = True) -> str:
    """Names with their values, the best first; of many the best and the worst. Empty if no value is known."""
    known = sorted(
        ((name, value) for name, value in values if value is not None), key=lambda pair: pair[1] if less else -pair[1]
    )
    said = [tr("{run} {value}", run=style.elided(name), value=text(value)) for name, value in known]
    if len(said) <= MOST:
        return joined(said)
    return tr(
        "{first}, {second}, …, {worst} (best to worst of {count})",
        first=said[0],
        second=said[1],
        worst=said[-1],
        count=len(said),
    )
