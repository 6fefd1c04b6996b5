"""Read the power records of a run, and the engines' counters that the monitor wrote among them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pd_analysis.records.samples import samples_of
from pd_analysis.records.whole import refuse_cut
from pd_contracts import records
from pd_contracts.records import EngineTokens, GpuHeader, GpuSample, RecordError


@dataclass(frozen=True)
class Power:
    """What was recorded beside the requests; nothing if no monitor ran."""

    header: GpuHeader | None = None
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)
    engines: tuple[EngineTokens, ...] = ()


def read_power(path: Path) -> Power:
    """Read a file of power records, which need not be there.

    Raises:
        RecordError: if it is broken.
    """
    if not path.exists():
        return Power()
    refuse_cut(path)
    header = _header(path)
    engines: list[EngineTokens] = []
    samples = samples_of(_noting(records.read_lines(path, GpuSample, skip=1), engines), header)
    return Power(header, samples, tuple(engines))


def _noting(samples: Iterable[GpuSample], engines: list[EngineTokens]) -> Iterator[GpuSample]:
    """The samples one by one; the engines' counters in them are collected separately."""
    for sample in samples:
        engines.extend(sample.engines)
        yield sample


def _header(path: Path) -> GpuHeader:
    header = next(iter(records.read_lines(path, GpuHeader)))
    if header.schema_version > records.SCHEMA_VERSION:
        raise RecordError(
            "{path}: schema version {version} is newer than {known}; update pdstack to read it",
            path=path,
            version=header.schema_version,
            known=records.SCHEMA_VERSION,
        )
    return header
