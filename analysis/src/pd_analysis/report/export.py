"""Tables for other programs: one row per load on a deployment, and one row per request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from pd_analysis.numbers.bootstrap import interval
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.measures import COMPARED

FORMATS: Final = ("csv", "parquet")
_UNITS: Final = {"%": "percent", "req/s": "req_per_s", "tok/s": "tok_per_s"}


def write(results: Sequence[Result], out: Path, format_: str) -> list[Path]:
    """Write `runs` and `requests` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in (("runs", runs(results)), ("requests", requests(results))):
        path = out / f"{name}.{format_}"
        if format_ == "parquet":
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False)
        written.append(path)
    return written


def runs(results: Sequence[Result]) -> pd.DataFrame:
    """Set-up and every number of every result; units stand in the names, `low` and `high` bound the 95% interval."""
    return pd.DataFrame([_facts(result) | _numbers(result) for result in results])


def requests(results: Sequence[Result]) -> pd.DataFrame:
    """Every request of every run: times and durations in seconds, stages in milliseconds."""
    parts = [
        run.requests.rows.drop(columns=["preheat"]).assign(run=str(run.path), name=result.name)
        for result in results
        for run in result.runs
    ]
    return pd.concat(parts, ignore_index=True)


def _facts(result: Result) -> dict[str, Any]:
    manifest = result.run.manifest
    load = manifest.workload
    return {
        "name": result.name,
        "label": result.label,
        "run": str(result.run.path),
        "repeats": len(result.runs),
        "simulated": result.run.simulated,
        "topology": result.topology.value if result.topology else None,
        "gpus": result.metrics.gpus,
        "rate": load.rate,
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
        "seed": load.seed,
        "schedule_hash": manifest.schedule_hash,
        "window_s": result.metrics.window_s,
        "requests": result.metrics.requests,
        "failures": sum(result.metrics.failures.values()),
    }


def _numbers(result: Result) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    for measure in COMPARED:
        name = f"{measure.title} {_UNITS.get(measure.unit, measure.unit)}".lower().replace(" ", "_")
        value, draws = measure.get(result), measure.draws(result)
        numbers[name] = None if value is None else value * measure.scale
        if draws is not None:
            low, high = interval(draws * measure.scale)
            numbers |= {f"{name}_low": low, f"{name}_high": high}
    return numbers
