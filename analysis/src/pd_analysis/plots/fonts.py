"""Fonts for figures in another language.

If this host has no font with the script, figures stay in English instead of showing boxes, and the report says so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from matplotlib import font_manager

# File names of fonts that have Chinese, the ones made for it first: Linux, macOS, Windows.
_FILES: Final = (
    *("NotoSansCJK", "NotoSansSC", "SourceHanSans", "wqy-microhei", "wqy-zenhei", "DroidSansFallback"),
    *("PingFang", "Hiragino Sans GB", "STHeiti", "msyh", "simhei", "Arial Unicode", "uming", "ukai"),
)


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
    """Silence matplotlib's warning, repeated for every text, that a font without bold is used for bold text."""
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
