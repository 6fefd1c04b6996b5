"""Find and read runs. Broken, partial or foreign files are reported with the reason and left out of all numbers."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pd_analysis.records import vllm_bench
from pd_analysis.records.possible import apart, window_of
from pd_analysis.records.power import Power, read_power
from pd_analysis.records.requests import read_requests
from pd_analysis.records.run import Loaded, Problem, Run
from pd_analysis.words.language import Sentence
from pd_contracts import records, vllm_result
from pd_contracts.latency import LIMITED
from pd_contracts.records import Manifest, Missing, RecordError

log = logging.getLogger(__name__)


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
            problems.append(Problem(path, Sentence("left out: {reason}", reason=_said(error, path))))
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
            reason = Sentence("{what} was not measured: {reason}", what=part.what, reason=part.reason)
            yield Problem(listed.parent, reason)


def _said(error: RecordError, folder: Path) -> Sentence:
    """The reason why a run cannot be read, translated when it is shown; it names files as they are in the run's folder."""
    return Sentence(error.message, **{name: _inside(hole, folder) for name, hole in error.holes.items()})


def _inside(hole: object, folder: Path) -> object:
    return hole.relative_to(folder) if isinstance(hole, Path) and folder in hole.parents else hole


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
    requests = read_requests(path, manifest, told[0] + cut_s if told is not None and cut_s else -np.inf)
    power, problems = _power(folder)
    window = window_of(requests.rows)
    manifest = msgspec.structs.replace(manifest, window=window)
    other = told is not None and apart(told, window)
    if other:
        remark = Sentence("its manifest names another window than that of its requests, which is used instead")
        problems.append(Problem(folder, remark, kept=True))
    if other or (cut_s and told is None):
        requests = read_requests(path, manifest, window[0] + cut_s)
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


def _power(folder: Path) -> tuple[Power, list[Problem]]:
    """The power records; if they are broken, the run is kept without energy."""
    try:
        return read_power(folder / records.GPU), []
    except RecordError as error:
        reason = Sentence("kept without its power: {reason}", reason=_said(error, folder))
        return Power(), [Problem(folder, reason, kept=True)]


def _refuse_unknown_limits(manifest: Manifest) -> None:
    if unknown := [name for name in manifest.workload.goodput if name not in LIMITED]:
        raise RecordError(
            "{path}: workload.goodput has no metric {name}; there are {names}",
            path=records.MANIFEST,
            name=unknown[0],
            names=", ".join(LIMITED),
        )
