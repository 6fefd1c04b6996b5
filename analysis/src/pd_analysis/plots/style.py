"""One look for every plot: sizes, colours that colour-blind readers can tell apart, and a canvas with title and watermark.

Colours are those of Okabe and Ito. Every colour in a figure is one of `COLOURS`, because the report puts the SVG into its page and replaces
each by a CSS variable, so that plots follow the reader's dark or light theme. matplotlib's pyplot is not used: its figures are global.
"""

import io
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from pd_analysis.numbers.evaluation import ROLES
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

LineStyle = Literal["-"] | tuple[float, Sequence[float]]

# name: (light theme and PNG, dark theme)
COLOURS: Final[Mapping[str, tuple[str, str]]] = {
    "paper": ("#ffffff", "#151b23"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9aa6b2"),
    "grid": ("#e1e6eb", "#2b333d"),
    "shade": ("#f1f4f7", "#1c242d"),
    "blue": ("#0072b2", "#4fa9e6"),
    "vermilion": ("#d55e00", "#ff8d4f"),
    "green": ("#009e73", "#35c79d"),
    "purple": ("#cc79a7", "#e29cc3"),
    "amber": ("#e69f00", "#f3b83f"),
    "sky": ("#56b4e9", "#86cbf2"),
    "wine": ("#882255", "#d66a9f"),
    "indigo": ("#4b3b9e", "#a193f2"),
    "olive": ("#7a7a1f", "#c5c463"),
    "brown": ("#8c510a", "#d39a57"),
    "grey": ("#8a939d", "#77828e"),
}
ON_BAR: Final = "#16191d"  # numbers inside bars, in either theme: every bar's colour is light enough for it
PAPER, INK, MUTED, GRID, SHADE, BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY, *_, GREY = (
    light for light, _ in COLOURS.values()
)

ROLE_COLOURS: Final = {Role.PREFILL: AMBER, Role.DECODE: GREEN, Role.COMBINED: BLUE}
STAGE_COLOURS: Final = {"queue": GREY, "prefill": AMBER, "kv_and_first_decode": PURPLE, "decode": GREEN}
# Ten runs have ten colours; line and marker differ too, so that they can be told apart in print and by colour-blind readers. From the
# eleventh on colours begin anew with other markers and lines: no two of the first 40 share colour and line, or colour and marker.
RUN_COLOURS: Final = ("blue", "vermilion", "green", "purple", "amber", "sky", "wine", "indigo", "olive", "brown")
RUN_LINES: Final[tuple[LineStyle, ...]] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
RUN_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "*", ">")

WIDTH: Final = 8.8
PNG_DPI: Final = 200  # twice the 100 at which the report shows a figure
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
    """Lines of at most so many columns; Chinese characters take two, and a line may end at any of them, for there are no spaces."""
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


def run_colour(position: int) -> str:
    """Colour of the n-th run of a group, the same in every plot."""
    return COLOURS[run_colour_name(position)][0]


def run_colour_name(position: int) -> str:
    """Its name in COLOURS, for the page around the plots."""
    return RUN_COLOURS[position % len(RUN_COLOURS)]


def run_line(position: int) -> LineStyle:
    """Line of the n-th run of a group; shifted with every round of colours, so that a colour never comes back with its line."""
    return RUN_LINES[(position + position // len(RUN_COLOURS)) % len(RUN_LINES)]


def run_marker(position: int) -> str:
    """Marker of the n-th run of a group."""
    return RUN_MARKERS[position % len(RUN_MARKERS)]


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
    """Inches above the axes that a key of so many entries takes."""
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


def save(figure: Figure, path: Path) -> str:
    """Write `path`.png and `path`.svg; return the SVG as it goes into a page.

    Must run inside `matplotlib.rc_context(RC)`, as the figure was drawn.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI, metadata={"Software": None})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    return inline(svg)


def inline(svg: str) -> str:
    """An SVG file's element for use inside HTML: theme variables for colours, the page's font, no ids of groups, no addresses."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r' d="[^"]*"', _coarse, body)
    body = re.sub(r"(font: [^;\"']*?px) [^;\"]*", r"\1 var(--font)", body)
    for name, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--plot-{name})")
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="presentation">', body, count=1)


def themed(svg: str, *, dark: bool) -> str:
    """An SVG file in the colours of one theme, for pages that hold a file for each."""
    colours = {pair[0]: pair[dark] for pair in COLOURS.values()}
    return re.sub("#[0-9a-f]{6}", lambda found: colours.get(found[0], found[0]), svg)


def _coarse(path: re.Match[str]) -> str:
    """A path with a hundredth of a point as its finest step: half the bytes, and no eye sees it."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0])


def theme_css(*, dark: bool) -> str:
    """The plots' colours as CSS custom properties."""
    return "".join(f"--plot-{name}:{pair[dark]};" for name, pair in COLOURS.items())


def apply(font: str | None = None) -> AbstractContextManager[None]:
    """The style as a context; nothing outside it changes. `font` has the characters that the usual one lacks."""
    family = {} if font is None else {"font.family": [*mpl.rcParams["font.sans-serif"][:1], font]}
    return mpl.rc_context(RC | family)  # type: ignore[arg-type]
