"""Whether two deployments gave the same answers: at temperature 0, equal prompts should have equal outputs."""

from dataclasses import dataclass

import pandas as pd

from pd_analysis.numbers.evaluation import Result


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
