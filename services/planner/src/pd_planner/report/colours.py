"""Colours and markers of deployments: plain engines, separate prefill and decode, adaptive roles."""

from typing import Protocol

from pd_analysis.plots import palette


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
