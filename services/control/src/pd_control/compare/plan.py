"""What a comparison does: its deployments, its loads, and how long they take. Pure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from pd_control.compare.deployments import Spec, single
from pd_control.compare.loads import Offer, Point, classic, fixed

# Overhead of a point: start of the load generator, warm-up, idle power before the window, and the answers after the last request.
OVERHEAD_S: Final = 8.0
# Until engines serve: measured for simulators, vLLM on two CPU cores, and vLLM with an 8B model on H200.
STARTS_S: Final = {"sim": 5.0, "vllm-cpu": 60.0, "vllm": 150.0}
# A search doubles from the start rate to about 64 times of it and adds three rates around the knee.
_SEARCHED_RATES: Final = 9
_CLASSIC_S: Final = 60.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `pdctl compare` was asked for.

    Attributes:
        gpus: those that it may use; simulated ones count from 0 too.
        size: GPUs per engine (tensor parallel size).
        manner: that of combined engines, as `ControlSettings.manner`.
    """

    engine: str
    deployments: list[Spec]
    offer: Offer
    gpus: list[int]
    size: int = 1
    title: str = ""
    containers: bool = False
    manner: str = ""

    def gpus_of(self, spec: Spec) -> int:
        """GPUs of a deployment, which numbers per GPU are divided by."""
        return spec.engines * self.size

    def points(self, spec: Spec) -> list[Point]:
        """The points of a deployment that are known beforehand; those of a rate search are not."""
        wanted: list[Point] = []
        if spec == self.alone:
            wanted += classic(self.offer)  # first, because they are short
        if "serve" in self.offer.modes and spec in self.deployments:
            wanted += fixed(self.offer, self.gpus_of(spec))
        return wanted

    @property
    def alone(self) -> Spec | None:
        """The one combined engine that modes other than serve are measured on; None if there are none."""
        if not any(mode != "serve" for mode in self.offer.modes):
            return None
        return single(self.deployments) or Spec(combined=1, manner=self.manner)

    @property
    def stages(self) -> list[Spec]:
        """Every deployment that is brought up, in order."""
        if self.alone is None or self.alone in self.deployments:
            return self.deployments
        serving = self.deployments if "serve" in self.offer.modes else []
        return [*serving, self.alone]


def seconds(comparison: Comparison) -> float:
    """About how long all of it takes."""
    return sum(seconds_of(comparison, spec, comparison.points(spec)) for spec in comparison.stages)


def seconds_of(
    comparison: Comparison,
    spec: Spec,
    points: Sequence[Point],
    measured: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> float:
    """About how long a deployment takes, with these of its known points.

    Args:
        comparison: what was asked for.
        spec: the deployment.
        points: those that are known beforehand and are to be measured.
        measured: rates per GPU that a search has already measured, by load.
    """
    known = sum((point.duration_s or point.load.length_s or _CLASSIC_S) + OVERHEAD_S for point in points)
    offer, searched = comparison.offer, 0.0
    if offer.searches and spec in comparison.deployments:
        gpus = comparison.gpus_of(spec)
        whole = sum(_at(offer, rate * gpus) for rate in _searched_rates(offer.start_rate))
        for load in filter(lambda load: load.searches, offer.loads):
            before = sum(_at(offer, rate * gpus) for rate in measured.get(load.name, ()))
            searched += max(0.0, whole - before) * len(offer.seeds)
    return STARTS_S[comparison.engine] + known + searched


def _searched_rates(start: float) -> list[float]:
    doubled = [start * 2.0**power for power in range(_SEARCHED_RATES - 3)]
    return [*doubled, *[start * 2.0 ** (_SEARCHED_RATES - 4)] * 3]


def _at(offer: Offer, rate: float) -> float:
    return offer.seconds(rate) + OVERHEAD_S
