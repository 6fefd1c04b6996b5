"""The files of the classic two-GPU test scripts, for those who come from them: same names, same keys, seconds throughout.

What those scripts call TBT is TPOT here. A number that is unknown is null, where they wrote 0.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from pd_analysis.numbers.evaluation import Result
from pd_analysis.plots import style, svg
from pd_analysis.plots.classic import performance_analysis
from pd_contracts.names import Role
from pd_contracts.records import write_json

RESULTS: Final = "disaggregated_results.json"
FIGURE: Final = "disaggregated_performance_analysis"
GPU_DATA: Final = "{}_gpu_data.json"
_MS: Final = 1e-3
_REQUEST: Final = {
    "request_id": "index",
    "e2e_latency": "e2el",
    "ttft": "ttft",
    "tbt": "tpot",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "output_tokens",
}
_SAMPLE: Final = {
    "power_draw": "power_w",
    "graphics_clock": "sm_clock_mhz",
    "memory_clock": "memory_clock_mhz",
    "gpu_utilization": "utilization",
    "temperature": "temperature_c",
}
_PERCENT: Final = 100.0


class ClassicError(ValueError):
    """The run has no classic form; the message gives the reason."""


def write(result: Result, out: Path) -> list[Path]:
    """Write a disaggregated run's three JSON files and its figure into `out`; returns their paths.

    Raises:
        ClassicError: if the run is not disaggregated.
    """
    roles = [Role.PREFILL, Role.DECODE]
    if not any(engine.role is Role.DECODE for engine in result.run.manifest.deployment.engines):
        msg = f"{result.name} is not disaggregated: --classic needs a run of prefill and decode engines"
        raise ClassicError(msg)
    out.mkdir(parents=True, exist_ok=True)
    data = {role: gpu_data(result, role) for role in roles}
    written = [out / RESULTS, *(out / GPU_DATA.format(role) for role in roles)]
    for path, document in zip(written, [results(result, data), *data.values()], strict=True):
        write_json(path, document)
    with style.apply():
        figure = performance_analysis(result)
        svg.save(figure, out / FIGURE)
    return [*written, out / f"{FIGURE}.png"]


def results(result: Result, data: Mapping[Role, Mapping[str, Any]]) -> dict[str, Any]:
    """Every served request of the measured window, GPU statistics by role, and means."""
    rows = [request(row) for row in result.run.requests.served.to_dict("records")]
    means = ("e2e_latency", "ttft", "tbt", "prefill_time", "decode_time")
    return {
        "test_type": "disaggregated_prefill_decode",
        "simulated": result.run.simulated,
        "total_requests": len(rows),
        "results": rows,
        **{f"{role}_gpu_statistics": each["statistics"] for role, each in data.items()},
        "summary": {f"avg_{name}": _mean([row[name] for row in rows]) for name in means},
    }


def request(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """One request with the scripts' keys; durations in seconds."""
    known = {name: _known(row.get(column)) for name, column in _REQUEST.items()}
    stages = {f"{stage}_time": _known(row.get(stage), _MS) for stage in ("prefill", "decode")}
    tokens = (known["prompt_tokens"], known["completion_tokens"])
    return {**known, **stages, "total_tokens": None if None in tokens else sum(tokens)}


def gpu_data(result: Result, role: Role) -> dict[str, Any]:
    """Samples and statistics of a role's boards within the measured window; power in W, clocks in MHz, utilisation in percent."""
    samples = result.run.samples
    start, end = result.run.window
    chosen = samples[(samples["role"] == role) & samples["t"].between(start, end)] if len(samples) else samples
    raw = [_sample(row) for row in chosen.to_dict("records")]
    return {
        "role": role.value,
        "interval": result.run.gpu.interval_s if result.run.gpu else None,
        "statistics": {name: _statistics([row[name] for row in raw]) for name in _SAMPLE},
        "raw_data": raw,
    }


def _sample(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    scaled = {"gpu_utilization": _PERCENT}
    readings = {name: _known(row.get(column), scaled.get(name, 1.0)) for name, column in _SAMPLE.items()}
    return {"timestamp": float(row["t"]), "gpu_id": int(row["index"]), **readings}


def _statistics(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"avg": _mean(known), "max": max(known, default=None), "min": min(known, default=None)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _known(value: Any, scale: float = 1.0) -> Any:
    if value is None or pd.isna(value):
        return None
    return value if isinstance(value, str) or scale == 1.0 else float(value) * scale
