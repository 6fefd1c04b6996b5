"""Mode batch: latency, throughput and energy of requests that are sent together, by batch size."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pd_analysis.energy.part_energy import PartEnergy, energy_of_part
from pd_analysis.energy.readings import Window
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.value import Value
from pd_analysis.records.run import Run


@dataclass(frozen=True)
class Batch:
    """All batches of one size; None is unknown.

    Attributes:
        batches: how many there were.
        window_s: their length, from the send to the last end, together.
        ttft_s, tpot_s: medians over their requests.
    """

    size: int
    batches: int
    requests: int
    served: int
    window_s: float
    ttft_s: float | None
    tpot_s: float | None
    output_tokens: int | None
    energy: PartEnergy | None

    @property
    def output_rate(self) -> float | None:
        """Output tokens per second while the batch ran."""
        return None if self.output_tokens is None or self.window_s <= 0 else self.output_tokens / self.window_s

    @property
    def token_j(self) -> Value | None:
        """Joules per output token."""
        if self.energy is None or not self.output_tokens:
            return None
        return Value(self.energy.joules, self.energy.error_j).per(self.output_tokens)


def batches(result: Result) -> list[Batch]:
    """Each size once, the smallest first, over all repeats of the load."""
    parts = [part for run in result.runs for part in _parts(run)]
    return [
        _pooled(size, [part for part in parts if part.size == size]) for size in sorted({part.size for part in parts})
    ]


@dataclass(frozen=True)
class _Part:
    """One batch of one run."""

    size: int
    rows: pd.DataFrame
    window: Window
    energy: PartEnergy | None


def _parts(run: Run) -> Iterator[_Part]:
    measured, first = run.requests.measured, 0
    for size in run.manifest.workload.batch_sizes:
        rows = measured[measured["index"].between(first, first + size - 1)]
        first += size
        if rows.empty or rows["end"].isna().all():
            continue
        window = float(rows["scheduled"].min()), float(rows["end"].max())
        yield _Part(size, rows, window, energy_of_part(run, window))


def _pooled(size: int, parts: list[_Part]) -> Batch:
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    served = rows[rows["ok"]]
    energies = [part.energy for part in parts if part.energy is not None]
    energy = None
    for each in energies if len(energies) == len(parts) else []:
        energy = each if energy is None else energy.plus(each)
    return Batch(
        size=size,
        batches=len(parts),
        requests=len(rows),
        served=len(served),
        window_s=sum(end - start for start, end in (part.window for part in parts)),
        ttft_s=_median(served["ttft"]),
        tpot_s=_median(served["tpot"]),
        output_tokens=None
        if served.empty or served["output_tokens"].isna().any()
        else int(served["output_tokens"].sum()),
        energy=energy,
    )


def _median(values: "pd.Series[float]") -> float | None:
    known = values.dropna()
    return None if known.empty else float(np.median(known))
