"""Whether deployments got prompts of equal length and gave the same answers: at temperature 0, equal prompts should have equal outputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import Pace, pace_of
from pd_analysis.records.run import Run

TOKENS_LIMIT: Final = 0.01  # token counts further apart than this are not the same work
SAME_TIMES_S: Final = 0.01  # equal schedules agree to the rounding of their offsets


def prompt_lengths(results: Iterable[Result]) -> dict[str, float]:
    """Mean tokens per prompt, by the result's name; a result whose server reported none is left out."""
    lengths = {result.name: float(result.requests.measured["prompt_tokens"].mean()) for result in results}
    return {name: length for name, length in lengths.items() if length == length}  # noqa: PLR0124 - NaN is not itself


def prompts_apart(results: Iterable[Result]) -> bool:
    """Whether their prompts differ in length. Where lengths vary, the load's settings do not say so, but the tokens that arrived do."""
    lengths = prompt_lengths(results).values()
    return len(lengths) > 1 and max(lengths) > min(lengths) * (1 + TOKENS_LIMIT)


def timetables_apart(some: Iterable[Run], others: Sequence[Run]) -> bool:
    """Whether runs that name one schedule were due at different times. What answers pace has no timetable."""
    pairs = (
        (one, two) for one in some for two in others if one.manifest.schedule_hash == two.manifest.schedule_hash != ""
    )
    return any(
        max(abs(mine - other) for mine, other in zip(one.requests.timetable, two.requests.timetable, strict=True))
        > SAME_TIMES_S
        for one, two in pairs
        if _has_timetable(one) and _has_timetable(two)
    )


def _has_timetable(run: Run) -> bool:
    workload = run.manifest.workload
    return pace_of(workload) is Pace.RATE and "turns" not in workload.options


@dataclass(frozen=True)
class Parity:
    """Outputs of two results that were compared by their hashes."""

    compared: int
    different: int


def parity(one: Result, two: Result) -> Parity:
    """Compare the outputs of equal requests of equal schedules; requests without a hash on both sides are left out."""
    compared = different = 0
    for ours in one.runs:
        for theirs in two.runs:
            if ours.manifest.schedule_hash == theirs.manifest.schedule_hash:
                pairs = _hashes(ours.requests.served).merge(_hashes(theirs.requests.served), on="index")
                compared += len(pairs)
                different += int((pairs["output_hash_x"] != pairs["output_hash_y"]).sum())
    return Parity(compared=compared, different=different)


def _hashes(served: pd.DataFrame) -> pd.DataFrame:
    return served.loc[served["output_hash"] != 0, ["index", "output_hash"]]
