"""Find and read runs. Broken, partial or foreign files are reported with the reason and left out of all numbers."""

import gc
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pandas as pd

from pd_analysis.records import vllm_bench
from pd_analysis.records.columns import Collector, Requests, samples_of
from pd_analysis.records.possible import apart, refuse_impossible, refuse_other_rate, window_of
from pd_analysis.records.run import Loaded, Problem, Run
from pd_analysis.words.language import Sentence, mark
from pd_contracts import records, vllm_result
from pd_contracts.latency import LIMITED
from pd_contracts.records import EngineTokens, GpuHeader, GpuSample, Manifest, Missing, RecordError, RequestRecord

log = logging.getLogger(__name__)

_BLOCK: Final = 8 << 20  # bytes of records that are objects at one time
_EXCERPT_GAPS: Final = 100_000  # about as many gaps are kept with their times …
_EXCERPT_S: Final = 20.0  # … of at most this part of a run


def load_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The usable runs below `paths`; each problem is logged as a warning. `load_tree` returns the problems too."""
    loaded = load_tree(paths)
    for problem in loaded.problems:
        log.warning("%s: %s", problem.path, problem.sentence)
    return loaded.runs


def load_tree(paths: Sequence[Path | str], cut_s: float = 0.0) -> Loaded:
    """Read every run folder and every result of `vllm bench serve` at or below `paths`, each once, in the order of their paths.

    The first `cut_s` seconds of each measured window count as warm-up.
    """
    runs: list[Run] = []
    problems = [
        Problem(path, Sentence("there is no such file or folder")) for path in map(Path, paths) if not path.exists()
    ]
    for path in _found(map(Path, paths)):
        try:
            found, remarks = _read(path, cut_s) if path.is_dir() else (vllm_bench.read(path, cut_s), [])
        except RecordError as error:
            problems.append(Problem(path, Sentence("left out: {reason}", reason=_said(error))))
            continue
        runs.extend(found)
        problems.extend(remarks)
    for path in map(Path, paths):
        problems.extend(_not_measured(path))
    return Loaded(runs=runs, problems=problems)


def _not_measured(path: Path) -> Iterator[Problem]:
    """Parts that a comparison could not measure, from the file in which it noted them."""
    for listed in sorted(path.rglob(records.NOT_MEASURED)):
        try:
            parts = records.read_json(listed, Missing).parts
        except RecordError as error:
            yield Problem(listed, str(error))
            continue
        for part in parts:
            yield Problem(listed.parent, f"{part.what} was not measured: {part.reason}")


def _said(error: RecordError) -> Sentence:
    """The reason why a run cannot be read, translated when it is shown."""
    return Sentence(error.message, **error.holes)


def _found(paths: Iterable[Path]) -> list[Path]:
    """Run folders, and result files of other programs. A file named directly is a result or a problem."""
    found = {
        each.resolve(): each
        for path in paths
        for each in (*_folders(path), *([path] if _named(path) else vllm_result.files(path)))
    }
    return sorted(found.values())


def _named(path: Path) -> bool:
    return path.is_file() and path.name != records.MANIFEST


def _folders(path: Path) -> list[Path]:
    manifests = [path] if path.is_file() and path.name == records.MANIFEST else sorted(path.rglob(records.MANIFEST))
    return [manifest.parent for manifest in manifests]


def _read(folder: Path, cut_s: float) -> tuple[list[Run], list[Problem]]:
    """Read one folder.

    Raises:
        RecordError: if it may not be counted; the message is the reason.
    """
    manifest = records.read_json(folder / records.MANIFEST, Manifest)
    if not manifest.complete:
        raise RecordError("the run did not finish (its manifest says complete: false); measure it again")
    _refuse_unknown_limits(manifest)
    path, told = folder / records.REQUESTS, manifest.window
    requests = _read_requests(path, manifest, told[0] + cut_s if told is not None and cut_s else -np.inf)
    power, problems = _read_gpu(folder)
    window = window_of(requests.rows)
    manifest = msgspec.structs.replace(manifest, window=window)
    other = told is not None and apart(told, window)
    if other:
        remark = Sentence("its manifest names another window than that of its requests, which is used instead")
        problems.append(Problem(folder, remark))
    if other or (cut_s and told is None):
        requests = _read_requests(path, manifest, window[0] + cut_s)
    if requests.measured.empty:
        raise RecordError("{path}: every request is warm-up, so nothing was measured; offer more requests", path=path)
    run = Run(
        path=folder,
        manifest=manifest,
        requests=requests,
        gpu=power.header,
        samples=power.samples,
        cut_s=cut_s,
        engines=power.engines,
    )
    return [run], problems


def _refuse_unknown_limits(manifest: Manifest) -> None:
    if unknown := [name for name in manifest.workload.goodput if name not in LIMITED]:
        raise RecordError(
            "{path}: workload.goodput has no metric {name}; there are {names}",
            path=records.MANIFEST,
            name=unknown[0],
            names=", ".join(LIMITED),
        )


def _read_requests(path: Path, manifest: Manifest, cut: float) -> Requests:
    """All requests; those that were due before `cut` count as warm-up."""
    _refuse_cut(path)
    collector = Collector(manifest.workload.goodput, cut=cut, excerpt=_excerpt(manifest))
    with _without_collection():
        for batch in _batches(path):
            collector.add(batch)
    requests = collector.finish()
    if requests.rows.empty:
        raise RecordError("{path}: holds no request; measure it again", path=path)
    # Warm-up requests may count from 0 on their own: they are no part of the schedule.
    twice = requests.rows[requests.rows.duplicated(["preheat", "index"])]
    if not twice.empty:
        number = twice["index"].iloc[0]
        raise RecordError(
            "{path}: request {number} is there twice; measure it again into an empty folder", path=path, number=number
        )
    found, told = len(requests.rows), manifest.workload.requests + manifest.workload.warmup_requests
    offered = max(told, int(requests.rows["index"].max()) + 1)
    if found < offered:
        raise RecordError(
            "{path}: holds {found} of {offered} requests; measure it again", path=path, found=found, offered=offered
        )
    if found > told:
        raise RecordError(
            "{path}: holds {found} requests, its manifest says {told}; measure it again",
            path=path,
            found=found,
            told=told,
        )
    refuse_impossible(requests.rows, path)
    refuse_other_rate(requests.rows, manifest.workload, path)
    return requests


def _excerpt(manifest: Manifest) -> tuple[float, float]:
    """The middle of the window, as long as its gaps fit."""
    if manifest.window is None:
        return -np.inf, np.inf
    start, end = manifest.window
    gaps = manifest.workload.requests * (manifest.workload.output_tokens or 1000)
    length = min(_EXCERPT_S, (end - start) * min(1.0, _EXCERPT_GAPS / max(gaps, 1)))
    return (start + end - length) / 2, (start + end + length) / 2


def _batches(path: Path) -> Iterator[list[RequestRecord]]:
    """All records, as many at a time as fit into a block."""
    decoder = msgspec.json.Decoder(RequestRecord)
    rest = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            block = rest + block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            try:
                batch = decoder.decode_lines(block[:end])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                # The slow reader finds the line and gives the error message that all readers of records share.
                yield from ([record] for record in records.read_lines(path, RequestRecord))
                return
            yield batch


@contextmanager
def _without_collection() -> Iterator[None]:
    """Records hold no cycles, and looking for some among millions of chunks takes as long as reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class _Power:
    header: GpuHeader | None = None
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)
    engines: tuple[EngineTokens, ...] = ()


def _read_gpu(folder: Path) -> tuple[_Power, list[Problem]]:
    """Read the power records; if they are broken, the run is kept without energy."""
    path = folder / records.GPU
    if not path.exists():
        return _Power(), []
    try:
        _refuse_cut(path)
        header = _header(path)
        engines: list[EngineTokens] = []
        samples = samples_of(_noting(records.read_lines(path, GpuSample, skip=1), engines), header)
        return _Power(header, samples, tuple(engines)), []
    except RecordError as error:
        return _Power(), [Problem(folder, Sentence("kept without its power: {reason}", reason=_said(error)))]


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


def _refuse_cut(path: Path) -> None:
    """A JSONL file whose writer was killed is partial, even if the lines that it has are good."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            last = file.read()
    except OSError as error:
        raise RecordError("{path}: {reason}", path=path, reason=error.strerror) from error
    if last != b"\n":
        message = (
            mark("{path}: is cut in its last line; measure it again")
            if last
            else mark("{path}: is empty; measure it again")
        )
        raise RecordError(message, path=path)
