"""The report's figures, by file name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from pd_analysis.plots import bars, curves, style, timeline
from pd_analysis.results import Group


@dataclass(frozen=True)
class Plot:
    """A figure of a group; `draw` gives None where the group lacks what it shows."""

    name: str
    alt: str
    draw: Callable[[Group], Figure | None]


@dataclass(frozen=True)
class Drawn:
    """A figure on disk (`path` is the PNG) and as an element for a page."""

    name: str
    alt: str
    path: Path
    svg: str


PLOTS: Final = (
    Plot("ttft", "Time to first token by percentile", curves.ttft),
    Plot("tpot", "Time per output token by percentile", curves.tpot),
    Plot("gaps", "Gaps between token chunks, and the longest of each request, by percentile", curves.gaps),
    Plot("latency_breakdown", "Stages of the mean request and of the slowest 1 %", bars.latency_breakdown),
    Plot("energy", "Joules per token by role", bars.energy),
    Plot("power_timeline", "Power of every GPU along the run, with requests in flight", timeline.power_timeline),
)


def draw(group: Group, folder: Path) -> list[Drawn]:
    """Draw what the group has into `folder`, as PNG and SVG; an older figure of what it has not is removed."""
    drawn = []
    with style.apply():
        for plot in PLOTS:
            path = folder / f"{plot.name}.png"
            figure = plot.draw(group)
            if figure is None:
                path.unlink(missing_ok=True)
                path.with_suffix(".svg").unlink(missing_ok=True)
            else:
                drawn.append(Drawn(name=plot.name, alt=plot.alt, path=path, svg=style.save(figure, path)))
    return drawn
