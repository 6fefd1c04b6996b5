"""Compiles functions with numba if it is installed (the extra `fast`). Otherwise they run as plain Python, some twenty times slower.

Compiled functions take arrays. Plain Python takes numbers out of lists several times faster than out of arrays, so there the columns are lists;
both are indexed alike, and that is all that the loops do with them.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

numba: Any
try:
    import numba as _numba

    numba = _numba
except ImportError:
    numba = None

COMPILED: Final = numba is not None


def cache_folder(sources: Path, given: str) -> Path:
    """Where what is compiled of `sources` is kept, below `given` if that is set.

    numba asks only whether a function's own file has changed, and functions of other files are inlined: after an update it would run old code.
    """
    digest = sha256(b"".join(path.read_bytes() for path in sorted(sources.glob("*.py")))).hexdigest()
    return (Path(given) if given else sources / "__pycache__") / f"compiled-{digest[:12]}"


if COMPILED:
    numba.config.CACHE_DIR = str(cache_folder(Path(__file__).parent, numba.config.CACHE_DIR))


def compiled(function: F) -> F:
    """The function as machine code, which Python may call: cached on disk after the first call if the disk is writable."""
    if not COMPILED:
        return function
    try:
        return cast("F", numba.njit(cache=True)(function))
    except RuntimeError:  # there is no folder that the code could be kept in
        return cast("F", numba.njit(function))


def to_be_kept(function: Callable[..., Any]) -> bool:
    """Whether it has not been compiled yet, and will be kept on the disk, where other processes find it."""
    folder = cast("Any", function).stats.cache_path if COMPILED else None
    return folder is not None and not list(Path(folder).glob(f"*.{function.__name__}-*.nbi"))


def inlined(function: F) -> F:
    """The function as a part of those that call it, all of which are compiled.

    Always inlined: where the compiler decides, it leaves calls in the loop over steps, and that takes about twice as long.
    Neither the code by which Python would call it nor a copy on disk is made, which takes a third of the time to compile.
    """
    if not COMPILED:
        return function
    return cast("F", numba.njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


if COMPILED:

    @compiled
    def zeros(count: int) -> Any:
        """So many numbers to begin with."""
        return np.zeros(count)

    @compiled
    def whole_zeros(count: int) -> Any:
        """So many whole numbers to begin with."""
        return np.zeros(count, np.int64)

    @compiled
    def copied(values: Any, first: int, end: int) -> Any:
        """A part of a column, to be changed."""
        return values[first:end].copy()

    def column(values: Any) -> Any:
        """An array as the loops take it."""
        return values

else:

    def zeros(count: int) -> Any:
        """So many numbers to begin with."""
        return [0.0] * count

    def whole_zeros(count: int) -> Any:
        """So many whole numbers to begin with."""
        return [0] * count

    def copied(values: Any, first: int, end: int) -> Any:
        """A part of a column, to be changed."""
        return values[first:end]

    def column(values: Any) -> Any:
        """An array as the loops take it."""
        return values.tolist()
