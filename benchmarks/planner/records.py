# ruff: noqa: INP001  a script
"""The published H200 runs, read once; and the profiles that are fitted to a part of them."""

import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pd_planner.calibrate.calibration import fitted
from pd_planner.calibrate.errors import Compared, compare
from pd_planner.calibrate.runs import Measured, read
from pd_planner.profile.analytic import analytic
from pd_planner.profile.datasheets import board_of
from pd_planner.profile.shape import read_shape
from pd_simulator.profile import Profile

ROOT: Final = Path(__file__).parents[2]
RECORDS: Final = ROOT / "docs" / "results" / "h200" / "records"
# Their engines sent a request's KV in one message, which the manifests do not say.
ONE_MESSAGE: Final = ("disagg 1P1D batched", "disagg 3P1D batched")
KV_TOKENS: Final = 152_000


def runs(archives: Sequence[str] = ("*",)) -> list[Measured]:
    """The runs of the archives that these patterns name."""
    with tempfile.TemporaryDirectory() as folder:
        for pattern in archives:
            for archive in sorted(RECORDS.glob(f"{pattern}.tar.xz")):
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")
        found, problems = read([Path(folder)], kv_tokens=KV_TOKENS, batched=ONE_MESSAGE)
    if problems:
        raise RuntimeError("; ".join(problems))
    return found


def start() -> Profile:
    """What is believed before any run: the model's shape and the board's data sheet."""
    board = board_of("H200")
    if board is None:
        raise RuntimeError("the data sheets have no H200")
    return analytic(read_shape("llama-3.1-8b"), board)


def predicted(every: Sequence[Measured], seen: Callable[[Measured], bool]) -> list[Compared]:
    """All runs that a profile did not see which was fitted to the others."""
    profile, _, _ = fitted(start(), [run for run in every if seen(run)])
    return [compare(profile, run) for run in every if not seen(run)]
