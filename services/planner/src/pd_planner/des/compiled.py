"""numba where it is installed (the extra `fast`), else nothing: the same functions run as plain Python, some fifty times slower."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

numba: Any
try:
    import numba as _numba

    numba = _numba
except ImportError:
    numba = None

COMPILED: Final = numba is not None


def compiled(function: F) -> F:
    """The function as machine code, kept on disk after the first call where the disk lets it."""
    if not COMPILED:
        return function
    try:
        return cast("F", numba.njit(cache=True)(function))
    except RuntimeError:  # there is no folder that the code could be kept in
        return cast("F", numba.njit(function))
