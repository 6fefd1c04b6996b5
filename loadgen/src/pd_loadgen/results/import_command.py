"""`pd-loadgen import`: results of other programs become run folders, so that everything that reads runs reads them.

A tree of `vllm bench sweep serve` is one deployment for each set of the server's parameters, offered several loads: folders
`SERVE-…-BENCH-…` with a file for each repeat, `run=0.json`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pd_contracts import vllm_bench, vllm_result
from pd_contracts.latency import parse_goodput
from pd_contracts.records import Manifest, RecordError, encode_line
from pd_contracts.vllm_result import VllmResult
from pd_loadgen.results.manifests import EXIT_COMPLETE
from pd_loadgen.results.run_folder import RunFolder, check, make_run_id
from pd_loadgen.results.summary import summarize


def execute(given: argparse.Namespace) -> int:
    """Import a file or a folder; the options are those of the command.

    Raises:
        RecordError: if there is no result, or one that cannot be read.
        FolderError: if a run folder cannot be written.
    """
    found = list(_results(given.path))
    if not found:
        msg = f"{given.path}: no result of vllm bench serve here"
        raise RecordError(msg)
    folders = [given.out] if len(found) == 1 and given.path.is_file() else [given.out / name for name, _, _ in found]
    for folder in folders:
        check(folder)
    for folder, (_, label, result) in zip(folders, found, strict=True):
        _write(folder, result, given, label)
    return EXIT_COMPLETE


def _results(path: Path) -> Iterator[tuple[Path, str, VllmResult]]:
    """A folder below that of the runs, the deployment's label and the result, of each result at or below the path."""
    files = [path] if path.is_file() else vllm_result.files(path)
    for file in files:
        try:
            results = vllm_result.read(file.read_bytes())
        except RecordError as error:
            msg = f"{file}: {error}"
            raise RecordError(msg) from error
        # as in the tree: the report knows repeats by their names
        folder = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("")
        for number, result in enumerate(results, 1):
            name = folder.with_name(f"{folder.name}-{number}") if len(results) > 1 else folder
            yield name, _label(path, file, result), result


def _label(path: Path, file: Path, result: VllmResult) -> str:
    """The name of a deployment without a label: its server's parameters in a sweep, else the folder of results."""
    if path.is_file():
        return ""
    return vllm_result.server_of(file.parent.name) or ("" if result.topology else path.name)


def _write(folder: Path, result: VllmResult, given: argparse.Namespace, label: str) -> None:
    run_id = make_run_id(given.label or label or "imported")
    made = vllm_bench.records(result, run_id)
    manifest = _manifest(vllm_bench.manifest(result, made, run_id), given, label)
    run = RunFolder(folder)
    run.append(map(encode_line, made))
    run.release()
    run.write_summary(summarize(manifest, made))
    run.write_manifest(manifest)
    sys.stderr.write(f"pd-loadgen: {len(made)} requests in {folder}\n")


def _manifest(manifest: Manifest, given: argparse.Namespace, label: str) -> Manifest:
    """The manifest of an imported run: options on the command line come first, then the file, then the folder's name."""
    label = given.label or manifest.deployment.label or label
    deployment = msgspec.structs.replace(
        manifest.deployment, label=label, **({"gpus": given.gpus} if given.gpus else {})
    )
    goodput = parse_goodput(given.goodput) if given.goodput else manifest.workload.goodput
    workload = msgspec.structs.replace(manifest.workload, goodput=goodput)
    return msgspec.structs.replace(manifest, deployment=deployment, workload=workload)
