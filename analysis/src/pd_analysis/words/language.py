"""The language of a report: a sentence is translated where it is made, by the gettext catalogue of that language.

The message is the English sentence with named holes, `tr("{run}: no power was recorded.", run=name)`, so that a catalogue may move the
holes. What stands in a constant is marked with `mark` and translated by `tr` where it is shown. `python docs/write_catalogue.py` brings the
catalogues up to date with the code; a sentence that a catalogue lacks stays English, and fails a test.
"""

import gettext
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import resources
from typing import Final

from pd_contracts.libraries import sentence_of
from pd_contracts.sentences import Clause, SentenceError

LANGUAGES: Final = ("en", "zh")
# A Chinese sentence has a blank beside a hole for what is in Latin letters; what is Chinese, too, needs none.
_CHINESE: Final = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
_BEFORE: Final = re.compile(rf"\{{(\w+)\}} (?={_CHINESE})")
_AFTER: Final = re.compile(rf"(?<={_CHINESE}) \{{(\w+)\}}")
_current: Final[ContextVar[str]] = ContextVar("language", default="en")


@contextmanager
def in_language(lang: str) -> Iterator[None]:
    """A context in which `tr` translates to one of `LANGUAGES`."""
    token = _current.set(lang)
    try:
        yield
    finally:
        _current.reset(token)


def current_language() -> str:
    """One of `LANGUAGES`: that of the innermost `in_language`."""
    return _current.get()


def tr(message: str, /, **holes: object) -> str:
    """A sentence or word in the current language."""
    if not message:
        return ""  # the empty message is the catalogue's head
    return _filled(catalogue(_current.get()).gettext(message), holes)


def ntr(one: str, many: str, count: int, /, **holes: object) -> str:
    """The same for a sentence that depends on a number, which is `{count}` in it."""
    return _filled(catalogue(_current.get()).ngettext(one, many, count), {"count": f"{count:,}", **holes})


def told(said: object) -> str:
    """What another package says, in the current language as far as its message and holes are known, or what a library says; else as it is."""
    known = said if isinstance(said, SentenceError | Clause) else sentence_of(str(said))
    if known is None:
        return str(said)
    return tr(known.message, **{name: _in_this_language(hole) for name, hole in known.holes.items()})


def _in_this_language(hole: object) -> object:
    return told(hole) if isinstance(hole, Exception | Clause | str) else hole


class Sentence:
    """A sentence that is translated when it is read, which may be in another language than the one in which it was made."""

    def __init__(self, message: str, /, **holes: object) -> None:
        self._message, self._holes = message, holes

    def __str__(self) -> str:
        return tr(self._message, **self._holes)


def mark(message: str, /) -> str:
    """The message itself: it is in the catalogues, and `tr` translates it later."""
    return message


@cache
def catalogue(lang: str) -> gettext.NullTranslations:
    """The translations of a language; English has none."""
    if lang == "en":
        return gettext.NullTranslations()
    from babel.messages import mofile, pofile  # noqa: PLC0415  an English report need not wait for it

    with resources.files(__package__).joinpath(f"{lang}.po").open("rb") as source:
        found = pofile.read_po(source, locale=lang)
    compiled = io.BytesIO()
    mofile.write_mo(compiled, found)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def _filled(text: str, holes: dict[str, object]) -> str:
    if not holes:
        return text
    if _current.get() == "zh":
        text = _BEFORE.sub(lambda hole: hole[0].rstrip() if _wide(str(holes[hole[1]])[-1:]) else hole[0], text)
        text = _AFTER.sub(lambda hole: hole[0].lstrip() if _wide(str(holes[hole[1]])[:1]) else hole[0], text)
    return text.format(**holes)


def _wide(letter: str) -> bool:
    return re.fullmatch(_CHINESE, letter) is not None
