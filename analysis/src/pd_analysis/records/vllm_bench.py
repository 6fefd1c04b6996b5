"""Results of `vllm bench serve`, found and read as runs; `pd_contracts.vllm_bench` says what is in them."""

from pathlib import Path

import pandas as pd

from pd_analysis.records.collector import requests_of
from pd_analysis.records.possible import refuse_impossible
from pd_analysis.records.run import Run
from pd_analysis.words.language import Sentence
from pd_contracts import vllm_bench, vllm_result
from pd_contracts.records import RecordError
from pd_contracts.vllm_result import VllmResult


def read(path: Path, cut_s: float = 0.0) -> list[Run]:
    """Read the results of one file, which are several where they were appended.

    Raises:
        RecordError: if it is broken, or holds sums instead of requests.
    """
    try:
        results = vllm_result.read(path.read_bytes())
    except RecordError as error:
        raise RecordError("{path}: {reason}", path=path, reason=Sentence(error.message, **error.holes)) from error
    names = [path.stem if len(results) == 1 else f"{path.stem}#{number}" for number in range(1, len(results) + 1)]
    return [
        _run(path.with_name(name + path.suffix), result, cut_s) for name, result in zip(names, results, strict=True)
    ]


def _run(path: Path, result: VllmResult, cut_s: float) -> Run:
    requests = vllm_bench.records(result, path.stem)
    manifest = vllm_bench.manifest(result, requests, path.stem)
    begin = manifest.window[0] if manifest.window else 0.0
    columns = requests_of(requests, manifest.workload.goodput, cut=begin + cut_s)
    refuse_impossible(columns.rows, path)
    return Run(
        path=path,
        manifest=manifest,
        requests=columns,
        gpu=None,
        samples=pd.DataFrame(),
        cut_s=cut_s,
    )
