"""Find runs and read them; what is broken, partial or of another format is reported with its reason, and never averaged in."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pd_analysis.frames import Requests, requests_of, samples_of
from pd_contracts import records
from pd_contracts.names import SIMULATED_ENGINE
from pd_contracts.records import GpuHeader, GpuSample, Manifest, RecordError, RequestRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """What could not be used, and why, as a sentence that names the remedy."""

    path: Path
    sentence: str


@dataclass(frozen=True)
class Run:
    """One run that may be counted.

    Attributes:
        gpu, samples: what the monitor wrote; None and an empty frame where no power was recorded.
    """

    path: Path
    manifest: Manifest
    requests: Requests
    gpu: GpuHeader | None
    samples: pd.DataFrame

    @property
    def simulated(self) -> bool:
        """True if an engine or a board of the run is simulated: then every number of it is."""
        deployment = self.manifest.deployment
        engines = any(engine.engine == SIMULATED_ENGINE for engine in deployment.engines)
        return deployment.simulated or engines or (self.gpu is not None and self.gpu.simulated)

    @property
    def window(self) -> tuple[float, float]:
        """The measured window on the client's clock: the manifest's, else first scheduled send to last end."""
        if self.manifest.window is not None:
            return self.manifest.window
        measured = self.requests.measured
        return float(measured["scheduled"].min()), float(measured[["end", "scheduled"]].max().max())


@dataclass(frozen=True)
class Loaded:
    """What a tree holds: the runs that may be counted, and what may not."""

    runs: list[Run]
    problems: list[Problem]


def load_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The usable runs below `paths`; each problem is logged as a warning. `load_tree` returns the problems too."""
    loaded = load_tree(paths)
    for problem in loaded.problems:
        log.warning("%s: %s", problem.path, problem.sentence)
    return loaded.runs


def load_tree(paths: Sequence[Path | str]) -> Loaded:
    """Read every run folder at or below `paths`, each once, in the order of their paths."""
    runs: list[Run] = []
    problems = [Problem(path, "there is no such folder") for path in map(Path, paths) if not path.exists()]
    for folder in _folders(map(Path, paths)):
        try:
            run, remarks = _read(folder)
        except RecordError as error:
            problems.append(Problem(folder, f"left out: {error}"))
            continue
        runs.append(run)
        problems.extend(remarks)
    return Loaded(runs=runs, problems=problems)


def _folders(paths: Iterable[Path]) -> list[Path]:
    found = {manifest.parent.resolve(): manifest.parent for path in paths for manifest in _manifests(path)}
    return sorted(found.values())


def _manifests(path: Path) -> list[Path]:
    return [path] if path.is_file() and path.name == records.MANIFEST else sorted(path.rglob(records.MANIFEST))


def _read(folder: Path) -> tuple[Run, list[Problem]]:
    """Read one folder.

    Raises:
        RecordError: if it may not be counted; the message is the reason.
    """
    manifest = records.read_json(folder / records.MANIFEST, Manifest)
    if not manifest.complete:
        msg = "the run did not finish (its manifest says complete: false); measure it again"
        raise RecordError(msg)
    requests = _read_requests(folder / records.REQUESTS, manifest)
    gpu, samples, problems = _read_gpu(folder)
    return Run(path=folder, manifest=manifest, requests=requests, gpu=gpu, samples=samples), problems


def _read_requests(path: Path, manifest: Manifest) -> Requests:
    _refuse_cut(path)
    requests = requests_of(records.read_lines(path, RequestRecord), manifest.workload.goodput)
    # Warm-up requests may count from 0 on their own: they are no part of the schedule.
    twice = requests.rows[requests.rows.duplicated(["warmup", "index"])]
    if not twice.empty:
        msg = f"{path}: request {twice['index'].iloc[0]} is there twice; measure it again into an empty folder"
        raise RecordError(msg)
    found = len(requests.rows)
    offered = max(manifest.workload.requests + manifest.workload.warmup_requests, int(requests.rows["index"].max()) + 1)
    if found < offered:
        msg = f"{path}: holds {found} of {offered} requests; measure it again"
        raise RecordError(msg)
    if requests.measured.empty:
        msg = f"{path}: every request is warm-up, so nothing was measured; offer more requests"
        raise RecordError(msg)
    return requests


def _read_gpu(folder: Path) -> tuple[GpuHeader | None, pd.DataFrame, list[Problem]]:
    """Power is worth having, but a run is whole without it: what is broken here costs the run its energy and nothing else."""
    path = folder / records.GPU
    nothing = pd.DataFrame()
    if not path.exists():
        return None, nothing, []
    try:
        _refuse_cut(path)
        header = _header(path)
        return header, samples_of(records.read_lines(path, GpuSample, skip=1), header), []
    except RecordError as error:
        return None, nothing, [Problem(folder, f"kept without its power: {error}")]


def _header(path: Path) -> GpuHeader:
    header = next(iter(records.read_lines(path, GpuHeader)))
    if header.schema_version > records.SCHEMA_VERSION:
        msg = f"{path}: schema version {header.schema_version} is newer than {records.SCHEMA_VERSION}; update pdstack to read it"
        raise RecordError(msg)
    return header


def _refuse_cut(path: Path) -> None:
    """A JSONL file whose writer was killed is partial, even if the lines that it has are good."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            last = file.read()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise RecordError(msg) from error
    if last != b"\n":
        msg = f"{path}: {'is cut in its last line' if last else 'is empty'}; measure it again"
        raise RecordError(msg)
