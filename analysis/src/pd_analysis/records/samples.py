"""GPU samples as columns."""

from collections.abc import Iterable
from typing import Any, Final

import pandas as pd

from pd_contracts.records import GpuHeader, GpuSample

SAMPLE_COLUMNS: Final = (
    "t",
    "index",
    "role",
    "power_w",
    "power_average_w",
    "energy_mj",
    "sm_clock_mhz",
    "utilization",
    "temperature_c",
    "throttle_reasons",
)


def samples_of(samples: Iterable[GpuSample], header: GpuHeader) -> pd.DataFrame:
    """GPU samples as columns, in time order; a sample without a role takes its board's from the header, unknown stays ""."""
    roles = {gpu.index: gpu.role for gpu in header.gpus}
    rows = [[sample.role or roles.get(sample.index) or "", *_readings(sample)] for sample in samples]
    names = ["role", *(name for name in SAMPLE_COLUMNS if name != "role")]
    frame = pd.DataFrame(rows, columns=names)
    numbers = {name: "float64" for name in SAMPLE_COLUMNS if name not in {"role", "index"}}
    return frame.astype(numbers | {"index": "int64"}).sort_values(["t", "index"], ignore_index=True)


def _readings(sample: GpuSample) -> list[Any]:
    return [getattr(sample, name) for name in SAMPLE_COLUMNS if name != "role"]
