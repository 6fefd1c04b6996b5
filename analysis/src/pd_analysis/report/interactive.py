"""What the page's interactive part needs: the numbers of every result as JSON, and the charting library, packed into the page."""

import base64
import gzip
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

import numpy as np

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.load import SWEPT, Pace, amount_words, lengths
from pd_analysis.numbers.measures import GOODPUT, JOULES
from pd_analysis.numbers.metrics import COLUMNS
from pd_analysis.numbers.sweep import Axis, axis_of
from pd_analysis.plots import palette
from pd_analysis.records.columns import quantiles
from pd_analysis.words.formatting import sizes
from pd_contracts.latency import PERCENTILES

SHOWN: Final = ("TTFT", "TPOT", "ITL", "Longest gap", "E2EL")
_PERCENTS: Final = (0, *range(5, 90, 5), *range(90, 100), 99.5, 99.9)
_DOTS: Final = 1500  # requests per result, of which each is a dot: more make the page heavy and hide each other
_DIGITS: Final = 5


def data(groups: Sequence[Group]) -> str:
    """JSON that is safe inside a script element."""
    labels = list(dict.fromkeys(result.label for group in groups for result in group.results))
    every = (result for group in groups for result in group.results)
    results = sorted(every, key=lambda result: (*lengths(result.load), result.load.amount))
    axes = _axes(results)
    runs = [_run(result, labels, axes.get(result.load.pace)) for result in results]
    facts = {
        "percents": _PERCENTS,
        "percentiles": PERCENTILES,
        "metrics": SHOWN,
        "limits": groups[0].baseline.run.manifest.workload.goodput,
        "simulated": any(group.simulated for group in groups),
        "runs": runs,
    }
    return json.dumps(facts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def library() -> str:
    """Plotly's own file, compressed: a third of its size, and the browser unpacks it without a network."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()


def _axes(results: Sequence[Result]) -> dict[Pace, Axis]:
    """One axis for each pace that has amounts: all its curves are drawn along it."""
    paces = {pace: [result for result in results if result.load.pace is pace] for pace in SWEPT}
    return {pace: axis_of(members) for pace, members in paces.items() if members}


def _run(result: Result, labels: Sequence[str], axis: Axis | None) -> dict[str, Any]:
    load = result.run.manifest.workload
    return {
        "name": result.name,
        "label": result.label,
        "topology": result.topology.value if result.topology else "",
        "colour": palette.run_colour_name(labels.index(result.label)),
        "load": amount_words(load),
        "place": None if axis is None else _short(axis.place(result)),
        "axis": "" if axis is None else axis.label,
        "shape": sizes(load),
        "curves": {name: _curve(result, COLUMNS[name]) for name in SHOWN},
        "at": {name: [_ms(result.metrics.latencies[name].at(p)) for p in PERCENTILES] for name in SHOWN},
        "dots": _dots(result),
        "goodput": _short(GOODPUT.get(result)),
        "attainment": _short(None if result.metrics.attainment is None else result.metrics.attainment * 100),
        "joules": _short(JOULES.get(result)),
    }


def _curve(result: Result, column: str) -> list[float | None]:
    ordered = result.requests.ordered(column)
    return [_ms(value) for value in quantiles(ordered, _PERCENTS).tolist()] if ordered.size else []


def _dots(result: Result) -> dict[str, list[float | None]]:
    served = result.run.requests.served
    served = served.iloc[:: max(1, -(-len(served) // _DOTS))]
    start = result.run.window[0]
    columns = {name: COLUMNS[name] for name in SHOWN if name != "ITL"}
    return {
        "t": [round(due - start, 3) for due in served["scheduled"].tolist()],
        **{name: [_ms(value) for value in served[column].tolist()] for name, column in columns.items()},
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _short(seconds * 1e3)


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.{_DIGITS}g}")
