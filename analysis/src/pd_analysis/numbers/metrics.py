"""One run's latencies and rates. Percentiles are over the measured window's successes; failures are counted separately, by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pd_analysis.records.columns import STAGES, Floats, Gaps, Requests, quantiles
from pd_analysis.records.run import Run
from pd_contracts.latency import PERCENTILES

# A percentile needs this many values to be more than one of the largest ones.
ENOUGH_FOR_P99: Final = 100
SLOWEST: Final = 99  # the tail whose stages are shown: requests at or above this percentile of the sum of their stages


@dataclass(frozen=True)
class Distribution:
    """Values in seconds, or None where there are none."""

    count: int
    mean: float | None
    percentiles: Mapping[int, float | None]

    def at(self, percentile: int) -> float | None:
        """One of `latency.PERCENTILES`."""
        return self.percentiles[percentile]


@dataclass(frozen=True)
class StageMeans:
    """Mean milliseconds per stage over some requests; the stages of one request sum to its time in the proxy."""

    requests: int
    stages: Mapping[str, float]

    @property
    def total(self) -> float:
        """Mean time from arrival at the proxy to the last byte."""
        return sum(self.stages.values())


@dataclass(frozen=True)
class Metrics:
    """The numbers of one run; None is unknown. Rates are per second of the measured window, over the whole deployment.

    Attributes:
        prompt_tokens, output_tokens: of successful requests, from the server's usage; None if one of them sent none.
        goodput: requests per second that meet every limit; None if no limit was set.
        attainment: share of all measured requests, failures too, that meet every limit.
        stages: percentiles of each stage, in seconds like all distributions.
        stage_means: "all" requests, and the "slowest": those at or above the 99th percentile of time in the proxy.
        gpus: what `per_gpu` divides by.
    """

    window_s: float
    gpus: int | None
    requests: int
    successes: int
    failures: Mapping[str, int]
    prompt_tokens: int | None
    output_tokens: int | None
    latencies: Mapping[str, Distribution]
    request_rate: float | None
    output_rate: float | None
    token_rate: float | None
    goodput: float | None
    attainment: float | None
    stages: Mapping[str, Distribution]
    stage_means: Mapping[str, StageMeans]

    def per_gpu(self, value: float | None) -> float | None:
        """A rate divided by the GPUs of the deployment; None if either is unknown."""
        return None if value is None or not self.gpus else value / self.gpus


def measure(run: Run) -> Metrics:
    """Derive every number of one run from its columns."""
    return measure_all([run], run.requests)


def measure_all(runs: Sequence[Run], requests: Requests) -> Metrics:
    """The same of runs of one load, whose requests were pooled and whose windows follow each other."""
    measured, served = requests.measured, requests.served
    seconds = sum(end - start for start, end in (run.window for run in runs))
    workload, deployment = runs[0].manifest.workload, runs[0].manifest.deployment
    prompt, output = _tokens(served, "prompt_tokens"), _tokens(served, "output_tokens")
    good = int(measured["good"].sum()) if workload.goodput else None
    return Metrics(
        window_s=seconds,
        gpus=deployment.gpus,
        requests=len(measured),
        successes=len(served),
        failures=_failures(measured),
        prompt_tokens=prompt,
        output_tokens=output,
        latencies=_latencies(requests),
        request_rate=_rate(len(served), seconds),
        output_rate=_rate(output, seconds),
        token_rate=_rate(None if prompt is None or output is None else prompt + output, seconds),
        goodput=_rate(good, seconds),
        attainment=None if good is None else good / len(measured),
        stages={stage: distribution(requests.ordered(stage) / 1e3) for stage in STAGES},
        stage_means=_stage_means(served),
    )


def _failures(measured: pd.DataFrame) -> dict[str, int]:
    """By kind, the most frequent first."""
    counts = measured.loc[~measured["ok"], "failure"].value_counts()
    return {str(kind): int(count) for kind, count in counts.items()}


COLUMNS: Final[Mapping[str, str]] = {
    "TTFT": "ttft",
    "TTFT (from send)": "ttft_from_send",
    "TPOT": "tpot",
    "ITL": "itl",
    "Longest gap": "longest_gap",
    "E2EL": "e2el",
}


def _latencies(requests: Requests) -> dict[str, Distribution]:
    """By the names of `latency.FORMULAS`."""
    return {name: distribution(requests.ordered(column)) for name, column in COLUMNS.items()}


def distribution(ordered: Floats | Gaps) -> Distribution:
    """Mean and percentiles of sorted values, with linear interpolation as `latency.percentile`; all None without values."""
    if not ordered.size:
        return Distribution(count=0, mean=None, percentiles=dict.fromkeys(PERCENTILES))
    found = quantiles(ordered, PERCENTILES)
    percentiles = {percentile: float(value) for percentile, value in zip(PERCENTILES, found, strict=True)}
    return Distribution(count=ordered.size, mean=float(ordered.mean(dtype=np.float64)), percentiles=percentiles)


def _tokens(served: pd.DataFrame, column: str) -> int | None:
    """The sum; None if the count of a request is unknown."""
    return None if served.empty or served[column].isna().any() else int(served[column].sum())


def _rate(amount: float | None, seconds: float) -> float | None:
    return None if amount is None or seconds <= 0 else amount / seconds


def _stage_means(served: pd.DataFrame) -> dict[str, StageMeans]:
    """Means of whole requests, so that the parts of a bar sum to a time that really passed; percentiles of parts do not."""
    timed = served[list(STAGES)].dropna()
    if timed.empty:
        return {}
    total = timed.sum(axis="columns")
    slowest = timed[total >= np.percentile(total, SLOWEST)]
    return {
        name: StageMeans(requests=len(part), stages={stage: float(part[stage].mean()) for stage in STAGES})
        for name, part in (("all", timed), ("slowest", slowest))
    }
