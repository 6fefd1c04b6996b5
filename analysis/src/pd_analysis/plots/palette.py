"""Colours that colour-blind readers can tell apart, and the lines and markers of runs.

Colours are those of Okabe and Ito. Every colour in a figure is one of `COLOURS`, because the report puts the SVG into its page and replaces
each by a CSS variable, so that plots follow the reader's dark or light theme.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

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


def theme_css(*, dark: bool) -> str:
    """The plots' colours as CSS custom properties."""
    return "".join(f"--plot-{name}:{pair[dark]};" for name, pair in COLOURS.items())
