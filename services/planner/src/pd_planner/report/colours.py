"""Colours and markers of deployments: plain engines, separate prefill and decode, adaptive roles."""

from collections.abc import Iterable
from typing import Protocol

from matplotlib.lines import Line2D

from pd_analysis.plots import palette
from pd_analysis.words.language import tr


class Kind(Protocol):
    """What a deployment, or a choice of one, says of itself."""

    @property
    def plain(self) -> bool: ...
    @property
    def adaptive(self) -> bool: ...


def colour_of(kind: Kind) -> str:
    if kind.adaptive:
        return palette.PURPLE
    return palette.BLUE if kind.plain else palette.GREEN


def marker_of(kind: Kind) -> str:
    if kind.adaptive:
        return "D"
    return "o" if kind.plain else "^"


def line_of(kind: Kind) -> str:
    if kind.adaptive:
        return ":"
    return "-" if kind.plain else "--"


def name_of(kind: Kind) -> str:
    if kind.adaptive:
        return tr("adaptive roles")
    return tr("plain engines") if kind.plain else tr("separate prefill and decode")


def key_of(kinds: Iterable[Kind]) -> list[Line2D]:
    """One entry for each kind of deployment that a figure shows, in the order in which they come."""
    looks = {name_of(kind): (colour_of(kind), marker_of(kind)) for kind in kinds}
    return [
        Line2D([], [], label=name, color=colour, marker=marker, linestyle="none")
        for name, (colour, marker) in looks.items()
    ]
