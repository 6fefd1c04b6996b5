"""Filters of the templates, which the planner's pages use too."""

import re
from typing import Final

from markupsafe import Markup, escape

# An option or a command, which no line may break at its hyphens.
_WHOLE: Final = re.compile(r"(?<![\w/-])(?:--[a-z][a-z-]*|pd-[a-z]+)")


def unbroken(text: str) -> Markup:
    """A text for a page: no line ends inside an option or the name of a command."""
    return Markup(_WHOLE.sub(r'<span class="whole">\g<0></span>', str(escape(text))))  # noqa: S704  escaped above


def pipe(text: str) -> str:
    """A text inside a Markdown table or line: no cell ends, no raw HTML, no line ends."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
