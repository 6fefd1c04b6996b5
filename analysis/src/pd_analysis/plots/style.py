"""One look for every plot: sizes, axes, keys, and a canvas with title and watermark.

matplotlib's pyplot is not used, because its figures are global.
"""

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from pd_analysis.numbers.evaluation import ROLES
from pd_analysis.plots.palette import GREY, GRID, INK, MUTED, PAPER, VERMILION, run_colour, run_line, run_marker
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

WIDTH: Final = 8.8
_KEY_COLUMNS: Final = 4
_TITLE_CHARACTERS: Final = 86
_SUBTITLE_CHARACTERS: Final = 128
_BADGE_CHARACTERS: Final = 12
# What stays on one line: a word without Chinese characters, or a Chinese character, with the punctuation and spaces behind it.
_PIECES: Final = re.compile(r"(?:[^\s\u2e80-\uffef]+|[\u2e80-\uffef]|\s)[、。，：；）！？]*\s*")
COLUMN_EM: Final = 0.57  # width of a character, of its size
_MARGINS: Final = {"left": 0.78, "right": 0.3, "top": 0.64, "bottom": 0.55}  # inches
HEADING_IN: Final = 0.24  # a title of a panel, between the key and its axes

RC: Final[dict[str, object]] = {
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.9,
    "svg.fonttype": "none",
    "svg.hashsalt": "pdstack",
}


def canvas(
    title: str,
    subtitle: str,
    height: float,
    *,
    simulated: bool,
    entries: int = 0,
    headed: bool = False,
    **margins: float,
) -> Figure:
    """A figure of report width with a title that states the finding.

    `height` is the axes', `margins` are around them (inches, by side); `entries` are those of a `key` that will be drawn; `headed` panels
    have titles of their own.
    """
    lines = wrapped(title, _TITLE_CHARACTERS - simulated * _BADGE_CHARACTERS)
    notes = wrapped(subtitle, _SUBTITLE_CHARACTERS)
    room = _MARGINS | margins
    room["top"] += (
        0.2 * (len(lines) - 1) + 0.15 * (len(notes) - 1) + (key_room(entries) if entries else 0) + headed * HEADING_IN
    )
    full = height + room["top"] + room["bottom"]
    figure = Figure(figsize=(WIDTH, full))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=room["left"] / WIDTH,
        right=1 - room["right"] / WIDTH,
        top=1 - room["top"] / full,
        bottom=room["bottom"] / full,
    )
    figure.text(0.16 / WIDTH, 1 - 0.14 / full, "\n".join(lines), size=12, weight="bold", va="top", linespacing=1.25)
    below = 1 - (0.14 + 0.235 * len(lines)) / full
    figure.text(0.16 / WIDTH, below, "\n".join(notes), size=9, color=MUTED, va="top")
    if simulated:
        _mark(figure)
    return figure


def wrapped(text: str, most: int) -> list[str]:
    """Lines of at most `most` columns. A Chinese character takes two, and a line may end after any of them, because there are no spaces."""
    if text.isascii() or not any(map(_is_wide, text)):
        return textwrap.wrap(text, most) or [""]
    lines, width = [""], 0
    for piece in _PIECES.findall(text):
        columns = sum(1 + _is_wide(character) for character in piece)
        if width + columns > most and lines[-1]:
            lines.append("")
            width = 0
        lines[-1] += piece
        width += columns
    return [line.strip() for line in lines]


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _mark(figure: Figure) -> None:
    """Draw the watermark of simulated runs everywhere, so that no crop of the figure passes for a measurement."""
    figure.text(
        0.53,
        0.45,
        tr("SIMULATED"),
        size=58,
        weight="bold",
        color=GREY,
        alpha=0.16,
        rotation=14,
        ha="center",
        va="center",
        zorder=9,
    )
    badge = {"boxstyle": "round,pad=0.35", "facecolor": VERMILION, "edgecolor": "none"}
    height = figure.get_figheight()
    figure.text(
        1 - 0.2 / WIDTH,
        1 - 0.17 / height,
        tr("SIMULATED"),
        size=8,
        weight="bold",
        color=PAPER,
        ha="right",
        va="top",
        bbox=badge,
    )


def quiet(axes: Axes, *, grid: str = "y") -> None:
    """Grid lines along one axis only, and no tick marks across them."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis="y" if grid == "y" else "x")
    axes.tick_params(length=0)


def grouped(axis: Axis) -> None:
    """Numbers along an axis with their thousands apart, and without digits that say nothing."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def limit_line(axes: Axes, limit: float | None, text: str) -> None:
    """A dotted line across, named outside the axes, where no curve runs through the name."""
    low, high = axes.get_ylim()
    if limit is None or not low < limit < high:
        return
    axes.axhline(limit, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    axes.annotate(
        text,
        (1, limit),
        (3, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        size=8.5,
        color=MUTED,
    )


def handles(names: Iterable[str], *, markers: bool = True) -> list[Artist]:
    """A group's runs for the key, each with its colour, line and marker."""
    return [
        Line2D(
            [],
            [],
            color=run_colour(position),
            linestyle=run_line(position),
            marker=run_marker(position) if markers else "none",
            label=elided(name),
        )
        for position, name in enumerate(names)
    ]


def key(figure: Figure, handles: Sequence[Artist], *, headed: bool = False) -> None:
    """One legend for all panels, between the subtitle and the axes, where no curve can run into it; `headed` panels have titles below it."""
    top = max(axes.get_position().y1 for axes in figure.axes)
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.09 / WIDTH, top + (0.04 + headed * HEADING_IN) / figure.get_figheight()),
        borderaxespad=0,
        ncols=min(len(handles), _KEY_COLUMNS),
        handleheight=1.1,
        columnspacing=1.8,
    )


def key_room(entries: int) -> float:
    """Inches above the axes that a key of this number of entries takes."""
    return 0.245 * -(-entries // _KEY_COLUMNS) + 0.06


def room_for(labels: Iterable[str], size: float = 9.5) -> float:
    """Inches to the left of an axis that its labels take, of which each may have several lines."""
    lines = [line for label in labels for line in label.split("\n")]
    columns = max((sum(1 + _is_wide(character) for character in line) for line in lines), default=0)
    return 0.3 + columns * size * COLUMN_EM / 72


def elided(name: str, most: int = 26) -> str:
    """A run's name, short enough for an axis."""
    return name if len(name) <= most else name[: most - 1] + "…"


def with_role(name: str, role: Role, message: str = mark("{run}, {role}")) -> str:
    """A run's name and one of its roles; a name that already contains the role stays as it is."""
    words = tr(ROLES[role])
    return name if words in name.lower() else tr(message, run=name, role=words)


def apply(font: str | None = None) -> AbstractContextManager[None]:
    """The style as a context; nothing outside it changes. `font` has the characters that the usual one lacks."""
    family = {} if font is None else {"font.family": [*mpl.rcParams["font.sans-serif"][:1], font]}
    return mpl.rc_context(RC | family)  # type: ignore[arg-type]
