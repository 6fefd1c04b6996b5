"""Results of `vllm bench serve`, found and read as runs; `pd_contracts.vllm_bench` says what is in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pandas as pd

from pd_analysis.records.columns import requests_of
from pd_analysis.records.run import Run
from pd_analysis.words.language import Sentence
from pd_contracts import vllm_bench
from pd_contracts.records import MANIFEST, SUMMARY, RecordError

_TELLING: Final = (b'"request_throughput"', b'"num_prompts"')


def files(path: Path) -> Iterator[Path]:
    """JSON files at or below `path` that look like its results; our own summaries have its keys and are none."""
    candidates = [path] if path.is_file() else sorted(path.rglob("*.json"))
    for candidate in candidates:
        ours = candidate.name in {MANIFEST, SUMMARY} or (candidate.parent / MANIFEST).exists()
        if candidate.suffix == ".json" and not ours and all(key in candidate.read_bytes() for key in _TELLING):
            yield candidate


def read(path: Path, cut_s: float = 0.0) -> Run:
    """Read one result.

    Raises:
        RecordError: if it is broken, or holds sums instead of requests.
    """
    try:
        result = vllm_bench.read(path.read_bytes())
    except RecordError as error:
        raise RecordError("{path}: {reason}", path=path, reason=Sentence(error.message, **error.holes)) from error
    requests = vllm_bench.records(result, path.stem)
    manifest = vllm_bench.manifest(result, requests, path.stem)
    if not manifest.deployment.label:
        deployment = msgspec.structs.replace(manifest.deployment, label=path.stem)
        manifest = msgspec.structs.replace(manifest, deployment=deployment)
    begin = manifest.window[0] if manifest.window else 0.0
    return Run(
        path=path,
        manifest=manifest,
        requests=requests_of(requests, manifest.workload.goodput, cut=begin + cut_s),
        gpu=None,
        samples=pd.DataFrame(),
        cut_s=cut_s,
    )
