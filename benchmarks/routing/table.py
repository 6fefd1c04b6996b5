"""The page with the results."""

# ruff: noqa: INP001  a part of a script

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

Row = dict[str, Any]

HEAD = """# Routing, simulated

**All numbers here are simulated.**
The engines have the profile `h200-llama3-8b` (H200, Llama-3.1-8B's shape) and run in virtual time; the proxy's own code decides.
`make bench-routing` writes this page.
The step model has no prefix cache, no jitter, and of the CPU's limits only the launch of steps; the lengths of prompts are known exactly; with P2pConnector, decode writes the first token.
[Two H200](routing.md#measured-on-two-h200) were measured with two of these traffics.
The lengths of Azure's and Mooncake's traffics are log-normal with the published medians and means; they are not the traces themselves.

Capacity is the highest Poisson rate at which nine in ten requests meet both objectives (TTFT/TPOT, ms), in requests per second per engine.
*Best static* is the best XpYd for that row, chosen afterwards; it and *plain* choose engines by predicted load and decode late, so they are better than round robin.
*Adaptive* has the same settings in all rows.
"""
SPREAD = "Numbers are means over the seeds that a row was measured with; in brackets is the worst seed."

# What has loads of its own, which its part of the page describes.
OF_THEIR_OWN = ("steps", "changing")


def page(rows: Sequence[Row], options: argparse.Namespace) -> str:
    by_case: defaultdict[str, defaultdict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["engines"] == options.engines:
            by_case[row["case"]][row["kind"]].append(row)
    cases = {label: kinds for label, kinds in by_case.items() if "capacity" in kinds}
    ordinary = [row for row in rows if row["kind"] not in OF_THEIR_OWN]
    how = [f"{options.engines} engines.", *_loads(ordinary, options)]
    if len({row["seed"] for row in ordinary}) > 1:
        how.append(SPREAD)
    parts = [HEAD, *how, "", *_capacities(cases), "", *_summary(cases)]
    rejecting = {label: kinds for label, kinds in cases.items() if "reject" in kinds}
    if rejecting:
        parts += ["", *_rejections(rejecting)]
    stressed = {label: kinds for label, kinds in cases.items() if "stress" in kinds}
    if stressed:
        parts += ["", *_stress(stressed, len(cases))]
    stepped = {label: kinds for label, kinds in cases.items() if "steps" in kinds}
    if stepped:
        parts += ["", *_steps(stepped)]
    changing = {label: kinds for label, kinds in by_case.items() if "changing" in kinds}
    if changing:
        parts += ["", *_changing(changing)]
    return "\n".join(parts) + "\n"


def _loads(rows: Sequence[Row], options: argparse.Namespace) -> list[str]:
    """The seeds, and how long their loads were at most."""
    seeds: defaultdict[tuple[float, int], set[int]] = defaultdict(set)
    for row in rows:
        seeds[row.get("seconds", options.seconds), row.get("requests", options.requests)].add(row["seed"])
    return [
        f"Seeds {_listed(sorted(found))}: at most {seconds:g} s or {requests:,} requests per load."
        for (seconds, requests), found in seeds.items()
    ]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _of_seeds(values: Sequence[float], form: str = ".2f", worst: Callable[[Sequence[float]], float] = min) -> str:
    """The mean, and the worst seed's value if there are several."""
    return f"{mean(values):{form}}" + (f" ({worst(values):{form}})" if len(values) > 1 else "")


def _column(rows: Sequence[Row], name: str) -> float:
    return mean(float(row[name]) for row in rows)


def _gains(rows: Sequence[Row]) -> list[float]:
    return [row["adaptive"] / max(row["plain"], row["static"]) for row in rows]


def _capacities(cases: dict[str, Any], new: str = " (new)") -> list[str]:
    lines = [
        "| traffic, TTFT/TPOT ms | plain | best static | adaptive | handed over at 0.9 × | adaptive ÷ best |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label, kinds in cases.items():
        rows = kinds["capacity"]
        splits = _listed(sorted({row["prefills"] for row in rows}))
        own = "" if rows[0]["tuned"] else new
        columns = [_column(rows, name) for name in ("plain", "static", "adaptive", "handed_over")]
        lines.append(
            f"| {label}{own} | {columns[0]:.2f} | {columns[1]:.2f} ({splits}P) | {columns[2]:.2f} | {columns[3]:.0%} | {_of_seeds(_gains(rows))} |"
        )
    return lines


def _summary(cases: dict[str, Any]) -> list[str]:
    lines = []
    for name, wanted in (("rows that the rule's numbers were found with", True), ("new rows", False)):
        gains = {
            label: _gains(kinds["capacity"])
            for label, kinds in cases.items()
            if kinds["capacity"][0]["tuned"] is wanted
        }
        if gains:
            most = max(map(mean, gains.values()))
            lines.append(f"- {len(gains)} {name}: {_overall(gains)}, best {most:.2f}.")
    return lines


def _overall(rows: dict[str, list[float]], one: str = "seed") -> str:
    """The geometric mean of the rows' means, the worst row, and the worst seed (or other `one`) of any row if there are several."""
    means = {label: mean(values) for label, values in rows.items()}
    worst, seed = min(means, key=means.__getitem__), min(rows, key=lambda label: min(rows[label]))
    text = f"geometric mean {_geometric(means.values()):.3f}, worst {means[worst]:.2f} ({worst})"
    several = any(len(values) > 1 for values in rows.values())
    return text + (f", worst {one} {min(rows[seed]):.2f} ({seed})" if several else "")


def _geometric(values: Iterable[float]) -> float:
    found = list(values)
    return math.exp(sum(map(math.log, found)) / len(found))


def _rejections(cases: dict[str, Any]) -> list[str]:
    lines = [
        "## Early rejection",
        "",
        "With `REJECT=slo`: the share of requests turned away at 0.9 times the capacity of *adaptive*, and the requests served in time at 1.3 times, as a share of that capacity.",
        "",
        "| traffic, TTFT/TPOT ms | rejected at 0.9 × | kept at 1.3 × |",
        "| --- | --- | --- |",
    ]
    for label, kinds in cases.items():
        below, kept = ([row[name] for row in kinds["reject"]] for name in ("rejected_below", "kept_1.3"))
        lines.append(f"| {label} | {_of_seeds(below, '.1%', max)} | {_of_seeds(kept)} |")
    return lines


def _stress(cases: dict[str, Any], of: int) -> list[str]:
    lines = [
        "## Overload, bursts, and costs that are wrong",
        "",
        "*Kept*: requests served in time at 1.3 times the capacity of adaptive, as a share of that capacity, with `REJECT=slo` and without it; *rejected*: share of requests turned away at 0.9 times.",
        "*Bursts*: gaps with a coefficient of variation of 2, adaptive against the best plain or static one.",
        "*0.85* and *1.2*: capacity of adaptive if it takes steps for 0.85 and 1.2 times as long as they are (beside STEP_MARGIN), against its own.",
        f"{len(cases)} of {of} traffics, seeds {_listed(sorted({row['seed'] for kinds in cases.values() for row in kinds['stress']}))}.",
        "",
        "| traffic, TTFT/TPOT ms | kept at 1.3 × | without | rejected at 0.9 × | bursts | 0.85 | 1.2 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    found: dict[str, dict[str, list[float]]] = {"Bursts": {}, "Costs × 0.85": {}, "Costs × 1.2": {}}
    for label, kinds in cases.items():
        rows, own = kinds["stress"], {row["seed"]: row["adaptive"] for row in kinds["capacity"]}
        kept, without, below = ([row[n] for row in rows] for n in ("kept_1.3", "without_1.3", "rejected_below"))
        bursts = [row["bursts"] / row["bursts_best"] for row in rows]
        low, high = ([row[n] / own[row["seed"]] for row in rows] for n in ("wrong_0.85", "wrong_1.2"))
        for name, values in zip(found, (bursts, low, high), strict=True):
            found[name][label] = values
        cells = (
            _of_seeds(kept),
            _of_seeds(without),
            _of_seeds(below, ".1%", max),
            *map(_of_seeds, (bursts, low, high)),
        )
        lines.append(f"| {' | '.join((label, *cells))} |")
    lines.append("")
    return [*lines, *(f"- {name}: {_overall(values)}." for name, values in found.items())]


def _steps(cases: dict[str, Any]) -> list[str]:
    lines = [
        "## Overload of engines at work",
        "",
        "With `REJECT=slo`, each load has three levels of 30 s: 0.85 times the capacity of *adaptive*, then 1.1, 1.3 or 2 times, then 0.8 times.",
        "*Kept*: requests of the second level that are served in time, as a share of the capacity; means of three loads, and in brackets the worst one.",
        "*Rejected before* and *after*: share of the requests turned away in the first level (from 8 s on) and in the third one, in the worst of the nine loads.",
        "*Again*: seconds from the end of the overload until nine in ten requests of the next 5 s are in time, in the worst load.",
        "",
        "| traffic, TTFT/TPOT ms | kept at 1.1 × | kept at 1.3 × | kept at 2 × | rejected before | rejected after | again, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    kept: dict[float, dict[str, list[float]]] = {1.1: {}, 1.3: {}, 2.0: {}}

    def of(rows: Sequence[Row], name: str, factor: float) -> list[float]:
        return [value for row in rows for value in row[f"{name}_{factor}"]]

    for label, kinds in cases.items():
        rows = kinds["steps"]
        for factor, values in kept.items():
            values[label] = of(rows, "kept", factor)
        worst = {name: max(max(of(rows, name, factor)) for factor in kept) for name in ("before", "after", "again")}
        cells = [label, *(_of_seeds(values[label]) for values in kept.values())]
        cells += [f"{worst['before']:.1%}", f"{worst['after']:.1%}", f"{worst['again']:g}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    return [*lines, *(f"- At {factor:g} ×: {_overall(values, 'load')}." for factor, values in kept.items())]


def _changing(cases: dict[str, Any]) -> list[str]:
    rows = {label: kinds["changing"] for label, kinds in cases.items()}
    lines = [
        "## Traffics that change",
        "",
        "Within 90 s lengths drift from the first to the last, the rate rises and falls by 70% twice, or another tenant begins in the middle.",
        "Prompts of 512 to 8,192 tokens have answers of 128, and answers of 32 to 512 have prompts of 2,048; documents are 6,000→64, and long answers 256→900.",
        "Capacity is for all of it, from 8 s on; *best static* is the best XpYd for the whole.",
        f"Seeds {_listed(sorted({row['seed'] for found in rows.values() for row in found}))}.",
        "",
    ]
    lines += _capacities({label: {"capacity": found} for label, found in rows.items()}, new="")
    gains = {label: _gains(found) for label, found in rows.items()}
    return [*lines, "", f"- {len(gains)} rows: {_overall(gains)}, best {max(map(mean, gains.values())):.2f}."]
