"""Colours and markers of deployments: plain engines, separate prefill and decode, adaptive roles."""

from pd_analysis.plots import palette
from pd_planner.search.question import Choice


def colour_of(choice: Choice) -> str:
    if choice.adaptive:
        return palette.PURPLE
    return palette.BLUE if choice.plain else palette.GREEN


def marker_of(choice: Choice) -> str:
    if choice.adaptive:
        return "D"
    return "o" if choice.plain else "^"
