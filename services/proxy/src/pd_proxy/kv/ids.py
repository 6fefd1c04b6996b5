"""Ids that nobody can guess."""

import os
from collections.abc import Iterator
from typing import Final

_DIGITS: Final = 32
_AT_ONCE: Final = 256


def _drawn() -> Iterator[str]:
    # The system call takes longer than everything else, so it draws many.
    while True:
        digits = os.urandom(_AT_ONCE * _DIGITS // 2).hex()
        yield from (digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS))


_ids = _drawn()


def unique() -> str:
    """128 random bits as 32 hexadecimal digits. Not for several threads."""
    return next(_ids)
