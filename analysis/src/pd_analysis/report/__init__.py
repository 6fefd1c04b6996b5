"""The report as one HTML page, as Markdown and as a closing table; the numbers for other programs."""

from typing import Final

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"
