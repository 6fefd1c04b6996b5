"""Figures as files, and as SVG for pages that have a dark and a light theme."""

import io
import re
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from pd_analysis.plots.palette import COLOURS

PNG_DPI: Final = 200  # twice the 100 at which the report shows a figure


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
