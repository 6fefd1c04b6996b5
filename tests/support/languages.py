"""Tells which sentences of a page went through the catalogues, and which did not."""

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path

from support.sources import parsed

TRANSLATED = {"tr", "ntr", "mark", "Sentence", "Clause", "RecordError"}
# Two words and more, of which one is no name or unit: what a reader would read as a sentence.
WORDS = re.compile(r"[A-Za-z]{2,} [a-z]{2,}")


class Marking(gettext.NullTranslations):
    """A language in which every message stands in brackets."""

    def gettext(self, message: str) -> str:
        return f"⟦{message}⟧"

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return f"⟦{msgid1 if n == 1 else msgid2}⟧"


def unmarked(text: str) -> list[str]:
    """What stands outside all brackets."""
    depth, outside = 0, [""]
    for character in text:
        depth += {"⟦": 1, "⟧": -1}.get(character, 0)
        if character in "⟦⟧":
            outside.append("")
        elif not depth:
            outside[-1] += character
    return outside


def prose_of(path: Path) -> str:
    """What a reader sees of a page (HTML or Markdown, without its code) or of a figure (SVG)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".svg":
        return "\n".join(re.findall(r"<text[^>]*>([^<]*)</text>", text))
    if path.suffix == ".md":
        return re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    body = re.sub(r"<(script|style|pre|svg)\b.*?</\1>", "", text, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", "\n", body)


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Every sentence in the code that is neither translated nor a docstring nor an error's."""
    tree = parsed(path)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr | ast.Raise)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TRANSLATED)
        for inner in ast.walk(node)
        if not (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value
