"""The measures that decide, each with its unit, its better direction, and the difference below which two runs are equal.

A single pair of runs shows no smaller difference than these: board power readings alone differ by about 5% (arXiv 2312.02741),
and a 99th percentile of a few hundred requests rests on a handful of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pd_analysis.numbers import bootstrap
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.metrics import COLUMNS
from pd_analysis.words.formatting import number
from pd_analysis.words.language import mark, tr

SMALL: Final = 0.05
SMALL_TAIL: Final = 0.10

Get = Callable[[Result], float | None]


@dataclass(frozen=True)
class Measure:
    """One number of a run.

    Attributes:
        name: the title in English, by which it is known.
        percentile: of a latency, whose title is that of the latency with it.
        get: the value in base units, or None.
        scale: base units to `unit`.
        less_is_better: None where neither direction is better.
        small: differences up to this share are called equal.
        benefit: what the better run gives, in the verdict's words; empty if the verdict does not rest on it. Where a run is better in the
            median and in the tail of a latency, the verdict says the median's.
        formula: the key of `latency.FORMULAS` or `formulas.ENERGY` that defines it.
        draws: bootstrap draws of the value, in base units; None if a run has none.
    """

    name: str
    unit: str
    get: Get
    percentile: int | None = None
    scale: float = 1.0
    less_is_better: bool | None = True
    small: float = SMALL
    benefit: str = ""
    formula: str = ""
    draws: bootstrap.Draws = lambda _: None

    @property
    def within_limits(self) -> bool:
        """Whether it counts requests that keep the run's own limits."""
        return self.formula in {"Goodput", "Requests within all limits"}

    @property
    def key(self) -> str:
        """The title in English, which identifies the measure."""
        return self.name if self.percentile is None else f"{self.name} p{self.percentile}"

    @property
    def title(self) -> str:
        """The title in the current language."""
        return tr(self.name) if self.percentile is None else f"{tr(self.name)} p{self.percentile}"

    @property
    def head(self) -> str:
        """Title and unit, as the head of a column."""
        return tr("{measure}, {unit}", measure=self.title, unit=self.unit)

    @property
    def phrase(self) -> str:
        """The title inside a sentence."""
        return self.title if self.title[1].isupper() else self.title[0].lower() + self.title[1:]

    def text(self, result: Result) -> str:
        """The value in `unit`, without it."""
        return number(self.get(result), scale=self.scale)


def _latency(name: str, percentile: int, *, benefit: str = "") -> Measure:
    return Measure(
        name=name,
        percentile=percentile,
        unit="ms",
        get=lambda result: result.metrics.latencies[name].at(percentile),
        scale=1e3,
        small=SMALL if percentile == 50 else SMALL_TAIL,
        benefit=benefit,
        formula=name,
        draws=bootstrap.of_percentile(COLUMNS[name], percentile),
    )


def _per_gpu(name: str, unit: str, rate: Get, *, benefit: str = "", formula: str = "Throughput") -> Measure:
    def get(result: Result) -> float | None:
        return result.metrics.per_gpu(rate(result))

    return Measure(
        name=name,
        unit=unit,
        get=get,
        less_is_better=False,
        benefit=benefit,
        formula=formula,
        draws=bootstrap.of_rate("good", _good_per_gpu) if formula == "Goodput" else bootstrap.of_repeats(get),
    )


def _good_per_gpu(result: Result) -> float | None:
    """Goodput per GPU that one good request makes."""
    metrics = result.metrics
    return None if metrics.goodput is None or metrics.window_s <= 0 else metrics.per_gpu(1 / metrics.window_s)


def _of_measured(result: Result) -> float | None:
    return 1 / result.metrics.requests if result.metrics.attainment is not None else None


def _joules(name: str, get: Get, *, benefit: str = "") -> Measure:
    return Measure(name=name, unit="J", get=get, benefit=benefit, formula=name, draws=bootstrap.of_repeats(get))


def mean_power_w(result: Result) -> float | None:
    """Mean power of the boards that serve."""
    energy = result.energy
    if energy is None or energy.total_j is None or energy.window_s <= 0:
        return None
    return energy.total_j / energy.window_s / len(energy.serving)


TTFT_P50: Final = _latency("TTFT", 50, benefit=mark("an earlier first token"))
TPOT_P50: Final = _latency("TPOT", 50, benefit=mark("faster tokens"))
TTFT_P99: Final = _latency("TTFT", 99, benefit=mark("fewer late first tokens"))
TPOT_P99: Final = _latency("TPOT", 99, benefit=mark("fewer slow answers"))
GAP_P99: Final = _latency(mark("Longest gap"), 99, benefit=mark("shorter stalls"))
GOODPUT: Final = _per_gpu(
    mark("Goodput per GPU"),
    "req/s",
    lambda result: result.metrics.goodput,
    benefit=mark("more requests within the limits"),
    formula="Goodput",
)
JOULES: Final = _joules(
    mark("Energy per output token"),
    lambda result: result.tokens.per_output if result.tokens else None,
    benefit=mark("less energy"),
)

COMPARED: Final[tuple[Measure, ...]] = (
    TTFT_P50,
    _latency("TTFT", 90),
    TTFT_P99,
    TPOT_P50,
    _latency("TPOT", 90),
    TPOT_P99,
    _latency("Longest gap", 50),
    GAP_P99,
    _latency("ITL", 99),
    _latency("E2EL", 50),
    _latency("E2EL", 99),
    _per_gpu(mark("Requests per GPU"), "req/s", lambda result: result.metrics.request_rate, formula="Request rate"),
    _per_gpu(mark("Output tokens per GPU"), "tok/s", lambda result: result.metrics.output_rate),
    _per_gpu(mark("All tokens per GPU"), "tok/s", lambda result: result.metrics.token_rate),
    GOODPUT,
    Measure(
        name=mark("Requests within all limits"),
        unit="%",
        get=lambda result: result.metrics.attainment,
        scale=1e2,
        less_is_better=False,
        formula="Requests within all limits",
        draws=bootstrap.of_rate("good", _of_measured),
    ),
    JOULES,
    _joules(mark("Energy per token"), lambda result: result.tokens.per_token if result.tokens else None),
    Measure(
        name=mark("Mean power per GPU"),
        unit="W",
        get=mean_power_w,
        less_is_better=None,
        formula="Mean power per GPU",
    ),
)

DECIDING: Final = tuple(measure for measure in COMPARED if measure.benefit)
