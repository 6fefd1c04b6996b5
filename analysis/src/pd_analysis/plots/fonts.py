"""Figures in another language: every text of a drawn figure is translated, in a font of this host that has the script.

Without such a font a figure stays English, for boxes in place of words say nothing; the report then says so.
"""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from pd_analysis.plots import style

# File names of fonts that have Chinese, the ones made for it first: Linux, macOS, Windows.
_FILES: Final = (
    *("NotoSansCJK", "NotoSansSC", "SourceHanSans", "wqy-microhei", "wqy-zenhei", "DroidSansFallback"),
    *("PingFang", "Hiragino Sans GB", "STHeiti", "msyh", "simhei", "Arial Unicode", "uming", "ukai"),
)
_COLUMNS: Final = 82  # of a title; a Chinese character takes two
_BADGE: Final = 14
_HEADING: Final = 10  # points, as the figures' own

Translate = Callable[[str], str]


@cache
def chinese_font() -> str | None:
    """Family name of a font with Chinese characters, made known to matplotlib (whose own list may be older); None if there is none."""
    files = sorted(map(Path, font_manager.findSystemFonts()))
    for wanted in _FILES:
        for path in files:
            if path.name.casefold().startswith(wanted.casefold()) and (family := _family(path)):
                return family
    return None


def _family(path: Path) -> str | None:
    try:
        font_manager.fontManager.addfont(path)
        return str(font_manager.get_font(path).family_name)
    except (OSError, RuntimeError):
        return None  # a file that matplotlib cannot read, as a bitmap or a broken font; another may do


@contextmanager
def without_remarks() -> Iterator[None]:
    """A font that has no bold stands in for its bold; that matplotlib says so for every text helps nobody."""
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def translate(figure: Figure, said: Translate) -> None:
    """Put every text of the figure into another language; numbers and names stay."""
    title, *others = figure.texts
    lines = _wrapped(said(" ".join(title.get_text().split("\n"))), narrow=len(others) > 1)
    title.set_text("\n".join(lines))
    for text in others:
        text.set_text(said(text.get_text()))
    if others:
        style.put_subtitle(figure, others[0], len(lines))
    for legend in figure.legends:
        _say(legend.get_texts(), said)
    for axes in figure.axes:
        inside = axes.get_legend()
        _say([*axes.texts, *(inside.get_texts() if inside else ())], said)
        for place in ("left", "center", "right"):
            if heading := axes.get_title(loc=place):
                axes.set_title(said(heading), loc=place, size=_HEADING, weight="bold")
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_text(said(axis.label.get_text()))
            _say_ticks(axis, said)


def _say(texts: Iterable[Text], said: Translate) -> None:
    for text in texts:
        text.set_text(_lines(text.get_text(), said))


def _say_ticks(axis: Axis, said: Translate) -> None:
    """Only ticks that were set one by one have words."""
    if isinstance(axis.get_major_locator(), FixedLocator):
        labels = [label.get_text() for label in axis.get_majorticklabels()]
        if not any(labels):
            return  # another panel shows them, and shares them with this one
        axis.set_ticks(list(axis.get_majorticklocs()), labels=[_lines(label, said) for label in labels])


def _lines(text: str, said: Translate) -> str:
    return "\n".join(said(line) for line in text.split("\n"))


def _wrapped(text: str, *, narrow: bool) -> list[str]:
    """Lines of a title; Chinese has no spaces to break at, so any of its characters will do. A badge takes room."""
    most = _COLUMNS - _BADGE * narrow
    lines, width = [""], 0
    for character in text:
        columns = 1 + (unicodedata.east_asian_width(character) in "WF")
        if width + columns > most and not (character.isascii() and character.isalnum()):
            lines.append("")
            width = 0
        lines[-1] += character
        width += columns
    return [line.strip() for line in lines]
