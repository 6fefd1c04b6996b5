"""Many runs as one table, a row per run. For a killed run the summary is computed from the records that exist."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec

from pd_contracts.libraries import plain
from pd_contracts.records import (
    MANIFEST,
    REQUESTS,
    SUMMARY,
    Manifest,
    RecordError,
    RequestRecord,
    read_json,
    read_lines,
)
from pd_loadgen.results.summary import summarize

Row = dict[str, str | int | float | bool | None]


def rows(paths: Iterable[Path]) -> Iterator[Row]:
    """One row for each run at or below the paths, in the order of their folders.

    Raises:
        RecordError: if a path holds no run, or a file of one cannot be read.
    """
    for path in paths:
        found = sorted(manifest.parent for manifest in path.rglob(MANIFEST)) if path.is_dir() else []
        if not found:
            msg = f"{path}: no run here (no {MANIFEST})"
            raise RecordError(msg)
        for folder in found:
            yield row(folder)


def row(folder: Path) -> Row:
    """Settings and results of one run, by column.

    Raises:
        RecordError: if a file of it cannot be read.
    """
    manifest = read_json(folder / MANIFEST, Manifest)
    return {"path": str(folder), **_identity(manifest), **_scalars(_summary(folder, manifest))}


def write_csv(table: Iterable[Row], file: TextIO) -> int:
    """Write the rows under all their columns; returns how many there were. What a run does not have is empty."""
    kept = list(table)
    columns = list(dict.fromkeys(name for one in kept for name in one))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    return len(kept)


def write_parquet(table: Iterable[Row], path: Path) -> int:
    """The same table as a Parquet file; returns how many rows there were.

    Raises:
        RecordError: if pyarrow, which writes it, is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  an extra, which only this needs
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        msg = "Parquet needs pyarrow: install pd-loadgen[parquet], or remove --parquet"
        raise RecordError(msg) from None
    kept = list(table)
    columns = list(dict.fromkeys(name for one in kept for name in one))
    parquet.write_table(pa.table({name: _column(kept, name) for name in columns}), path)
    return len(kept)


def _column(kept: list[Row], name: str) -> list[Any]:
    """One column; a number that is whole in one run and not in another is a number."""
    values = [one.get(name) for one in kept]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]


def _summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    path = folder / SUMMARY
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            msg = f"{path}: {plain(error)}"
            raise RecordError(msg) from error
    requests = folder / REQUESTS
    return summarize(manifest, list(read_lines(requests, RequestRecord)) if requests.exists() else [])


def _identity(manifest: Manifest) -> Row:
    deployment, load = manifest.deployment, manifest.workload
    return {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "title": manifest.title,
        "topology": str(deployment.topology) if deployment.topology else None,
        "simulated": deployment.simulated,
        "gpus": deployment.gpus,
        "complete": manifest.complete,
        "client_valid": manifest.client.valid if manifest.client else None,
        "dataset": load.dataset,
        "arrival": load.arrival,
        "seed": load.seed,
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
        "duration_s": load.duration_s,
        "schedule_hash": manifest.schedule_hash,
    }


def _scalars(summary: Mapping[str, Any]) -> Row:
    """vLLM's keys as they are; ours from the scheduled send, `TTFT p99 from schedule ms`, and the attainments."""
    plain = {key: value for key, value in summary.items() if not isinstance(value, dict | list)}
    ours = summary.get("pdstack") or {}
    spread = {
        f"{metric} {name} from schedule ms": value
        for metric, values in (ours.get("latencies_ms") or {}).items()
        for name, value in values.items()
    }
    shares = {f"attainment {name}": value for name, value in (ours.get("attainment") or {}).items()}
    per_gpu = {f"{name} per gpu": value for name, value in (ours.get("per_gpu") or {}).items()}
    return {**plain, **spread, **shares, **per_gpu}
