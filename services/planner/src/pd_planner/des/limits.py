"""Latency limits, and which requests meet them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from pd_analysis.words.language import tr
from pd_planner.des.deployment import Outcome
from pd_planner.des.model import Floats
from pd_routing.view import Objectives


@dataclass(frozen=True)
class Limits:
    """Milliseconds by metric (ttft, tpot, e2el), and the share of requests that must be within all of them."""

    milliseconds: Mapping[str, float]
    attainment: float = 0.9

    def of(self, values: Mapping[str, Floats]) -> npt.NDArray[np.bool_]:
        """Whether each request is within all limits; NaN, a request of a single token without a TPOT, is within any limit on it."""
        within = np.ones(len(values["ttft"]), np.bool_)
        for metric, limit in self.milliseconds.items():
            within &= ~(values[metric] > limit)
        return within

    def met(self, outcome: Outcome) -> npt.NDArray[np.bool_]:
        """Whether each simulated request is within all limits."""
        return self.of({"ttft": outcome.ttft_ms, "tpot": outcome.tpot_ms, "e2el": outcome.e2el_ms})

    @property
    def objectives(self) -> Objectives:
        """As the proxy has them; infinite if there is no limit."""
        return Objectives(self.milliseconds.get("ttft", inf), self.milliseconds.get("tpot", inf))

    @property
    def words(self) -> str:
        """TTFT ≤ 500 ms and TPOT ≤ 15 ms for 90% of requests."""
        parts = [f"{metric.upper()} ≤ {limit:g} ms" for metric, limit in self.milliseconds.items()]
        return tr("{limits} for {share} of requests", limits=tr(" and ").join(parts), share=f"{self.attainment:.0%}")
