"""The report in another language: sentences are translated where they are written out, by templates with holes for their numbers.

English is what the code says. `zh.toml` holds pairs; `{a}` in both is a hole, whose content is translated too. What has no pair stays
English, as does what users and engines wrote, and figures where this host has no font for the script (`plots.script`).
"""

import html as escapes
import re
import tomllib
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import resources
from typing import Final

LANGUAGES: Final = ("en", "zh")
_HOLE: Final = re.compile(r"\{(\w+)\}")
_UNTOUCHED: Final = re.compile(r"(<(script|style|svg|pre)\b.*?</\2>)", re.DOTALL)
_TEXT: Final = re.compile(r">([^<>]+)<")
_LABEL: Final = re.compile(r'aria-label="([^"]+)"')
_EMPHASIS: Final = re.compile(r"(\*\*.+?\*\*|(?<!\*)\*[^*]+\*(?!\*))")


def said(text: str, lang: str) -> str:
    """One sentence or word in a language."""
    return text if lang == "en" else _said(text, lang)


def html(page: str, lang: str) -> str:
    """A page whose texts are translated; scripts, figures and commands stay as they are."""
    if lang == "en":
        return page
    pieces = _UNTOUCHED.split(page)
    # split() gives text, a whole element, and the element's name, in turn
    for number in range(0, len(pieces), 3):
        piece = _TEXT.sub(lambda found: f">{_escaped(found[1], lang)}<", pieces[number])
        pieces[number] = _LABEL.sub(lambda found: f'aria-label="{_escaped(found[1], lang)}"', piece)
        if number + 2 < len(pieces):
            pieces[number + 2] = ""
    return "".join(pieces)


def markdown(text: str, lang: str) -> str:
    """The same for Markdown: headings, lines of lists and tables, emphasised parts."""
    if lang == "en":
        return text
    lines, inside = [], False
    for line in text.split("\n"):
        inside ^= line.startswith("```")
        lines.append(line if inside or line.startswith("```") else _line(line, lang))
    return "\n".join(lines)


def _line(line: str, lang: str) -> str:
    if line.startswith("!["):
        return re.sub(r"!\[([^]]*)\]", lambda found: f"![{_said(found[1], lang)}]", line)
    if line.startswith("|"):
        return "|".join(_around(cell, lambda cell: _said(cell, lang)) for cell in line.split("|"))
    mark = re.match(r"(#+ (?:SIMULATED: )?|- )?", line)
    head = mark[0] if mark else ""
    return head + "".join(_part(part, lang) for part in _EMPHASIS.split(line[len(head) :]))


def _part(part: str, lang: str) -> str:
    stars = re.match(r"\*+", part)
    if stars is None:
        return _around(part, lambda text: _said(text, lang))
    inner = part[len(stars[0]) : -len(stars[0])]
    return f"{stars[0]}{_said(inner, lang)}{stars[0]}"


def _around(text: str, translate: Callable[[str], str]) -> str:
    """Translate without the white space at both ends."""
    core = text.strip()
    return text.replace(core, translate(core), 1) if core else text


def _escaped(text: str, lang: str) -> str:
    return _around(text, lambda core: escapes.escape(_said(escapes.unescape(core), lang), quote=True))


@lru_cache(maxsize=4096)
def _said(text: str, lang: str) -> str:
    exact, templates = _catalogue(lang)
    if text in exact:
        return exact[text]
    for pattern, translation in templates:
        found = pattern.fullmatch(text)
        if found:
            return translation.format(**{hole: _said(value, lang) for hole, value in found.groupdict().items()})
    return _pieces(text, lang)


def _pieces(text: str, lang: str) -> str:
    """Several sentences, or a list: each on its own."""
    for mark, other in ((". ", "。"), ("; ", "；"), (", ", "，"), (" and ", "和")):
        parts = text.split(mark)
        if len(parts) > 1:
            closed = [part + "." if mark == ". " and not part.endswith(".") else part for part in parts]
            there = [_said(part, lang) for part in closed]
            if there != closed:
                return "".join(there) if mark == ". " else other.join(there)
    return text


@cache
def _catalogue(lang: str) -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """Exact pairs, and templates with the most words of their own first."""
    source = resources.files(__package__).joinpath(f"{lang}.toml").read_text(encoding="utf-8")
    pairs: dict[str, str] = tomllib.loads(source)
    exact = {english: other for english, other in pairs.items() if not _HOLE.search(english)}
    holed = sorted((english for english in pairs if english not in exact), key=lambda text: -len(_HOLE.sub("", text)))
    return exact, [(_pattern(english), pairs[english]) for english in holed]


def _pattern(english: str) -> re.Pattern[str]:
    pieces = _HOLE.split(english)
    parts = (_hole(piece) if number % 2 else re.escape(piece) for number, piece in enumerate(pieces))
    return re.compile("".join(parts), re.DOTALL)


def _hole(name: str) -> str:
    kinds = {"n": r"[\d.,]+", "w": r"[^():;]+?"}
    return f"(?P<{name}>{kinds.get(name[0], '.+?')})"
