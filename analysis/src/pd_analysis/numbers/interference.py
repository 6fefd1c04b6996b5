"""How prefill delays running requests: token gaps in which another request got its first token, against the other gaps."""

from dataclasses import dataclass

import numpy as np

from pd_analysis.numbers.evaluation import Result
from pd_analysis.records.columns import Floats

_AFTER_S = 0.001  # tokens of one step reach the client one after the other


@dataclass(frozen=True)
class Interference:
    """Gaps of the excerpt, in seconds.

    Attributes:
        t, gap: when each gap ended, and its length.
        beside: another request got its first token within it, so that the step that ended it had prefilled something.
    """

    t: Floats
    gap: Floats
    beside: np.ndarray

    def tail(self, *, beside: bool) -> float | None:
        """The 99th percentile of the gaps beside a first token, or of the others; None if there are none."""
        chosen = self.gap[self.beside == beside]
        return float(np.percentile(chosen, 99)) if chosen.size else None


def interference(result: Result) -> Interference:
    """Look at the part of the run whose gaps were kept with their times."""
    excerpt = result.run.requests.excerpt
    t, gap = excerpt["t"].to_numpy(dtype=np.float64), excerpt["gap"].to_numpy(dtype=np.float64)
    firsts = np.sort(result.run.requests.rows["first"].dropna().to_numpy(dtype=np.float64))
    # A request's own first token lies at the beginning of its first gap, and is not inside it.
    inside = np.searchsorted(firsts, t + _AFTER_S, side="right") - np.searchsorted(firsts, t - gap + 1e-9, side="right")
    return Interference(t=t, gap=gap, beside=inside > 0)
