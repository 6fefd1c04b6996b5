"""What was found as tables: the same ones for HTML, Markdown and the terminal."""

from collections.abc import Sequence
from typing import Final

from pd_analysis.tables.table import Cell, Table, table
from pd_analysis.words.formatting import DASH, number
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role
from pd_planner.confidence.findings import Findings
from pd_planner.report.sentences import band_words
from pd_planner.search.breakeven import Curve
from pd_planner.search.fleet import Operation
from pd_planner.search.question import Choice

ROWS: Final = 12
WHY_NOT: Final = mark("why not")
_LATENCIES: Final = (mark("TTFT p50, ms"), "TTFT p99", mark("TPOT p50, ms"), "TPOT p99", mark("J/output token"))
_ROLES: Final = (Role.PREFILL, Role.DECODE, Role.COMBINED)


def choices(found: Findings, rows: int = ROWS) -> Table:
    first = found.answer.choices[0].operation
    if found.question.rate:
        title = tr("Deployments, at {rate} requests/s", rate=number(found.question.rate))
    else:
        rate = number(first.rate / found.best.choice.fleet.gpus)
        title = tr("Deployments, at {rate} requests/s per GPU", rate=rate)
    header = (tr("deployment"), tr("GPUs"), tr("carries, req/s per GPU"), *map(tr, _LATENCIES), "W", tr("rests on"))
    shown = _shown(found, rows)
    refused = any(choice.refusal for choice in shown)
    if refused:
        header = (*header, tr(WHY_NOT))
    return table(
        title,
        header,
        [_row(found, choice, refused=refused) for choice in shown],
        {0, header.index(tr("rests on")), len(header) - 1},
        tr("SIMULATED. In brackets the 5th and 95th percentile over the draws."),
    )


def _shown(found: Findings, rows: int) -> list[Choice]:
    """The first choices, and adaptive roles wherever they rank."""
    shown, adaptive = found.answer.choices[:rows], found.answer.adaptive
    return shown if adaptive is None or adaptive in shown else [*shown[:-1], adaptive]


def _row(found: Findings, choice: Choice, *, refused: bool) -> list[str | Cell]:
    fleet, operation = choice.fleet, choice.operation
    latencies = [number(operation.latencies[name]) for name in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")]
    carried = band_words(found.drawn_of(choice), choice) if fleet.carries else DASH
    return [
        fleet.label,
        f"{fleet.gpus:,}",
        carried,
        *latencies,
        number(operation.joules),
        f"{operation.total_watts:,.0f}",
        tr(choice.trust.short),
        *([str(choice.refusal or "")] if refused else []),
    ]


def power(found: Findings) -> Table:
    """Watts by role of the first choices."""
    header = (tr("deployment"), *(f"{tr(role.value)}, W" for role in _ROLES), tr("all, W"), tr("W per GPU"))
    rows = []
    for drawn in found.drawn:
        watts, gpus = drawn.choice.operation.watts, drawn.choice.fleet.gpus
        cells = [f"{watts[role]:,.0f}" if role in watts else DASH for role in _ROLES]
        total = drawn.choice.operation.total_watts
        rows.append([drawn.choice.fleet.label, *cells, f"{total:,.0f}", f"{total / gpus:,.0f}"])
    return table(tr("Power by role"), header, rows, {0}, tr("SIMULATED, at the rate of the first table."))


def front(found: Findings) -> Table:
    """Choices that no other beats in GPUs, joules and TTFT at once."""
    rows = [
        [
            choice.fleet.label,
            f"{choice.fleet.gpus:,}",
            number(choice.operation.joules),
            number(choice.operation.latencies["ttft_p99"]),
            tr(choice.trust.short),
        ]
        for choice in sorted(found.answer.front, key=lambda choice: (choice.fleet.gpus, choice.operation.joules))
    ]
    return table(
        tr("Pareto front"),
        (tr("deployment"), tr("GPUs"), tr("J/output token"), tr("TTFT p99, ms"), tr("rests on")),
        rows,
        {0, 4},
        tr("SIMULATED. No other deployment has fewer GPUs, fewer joules and an earlier first token at once."),
    )


def flips(found: Findings) -> Table:
    outputs = sorted({point.output for point in found.flips})
    prompts = sorted({point.prompt for point in found.flips})
    at = {(point.prompt, point.output): point for point in found.flips}
    rows = [[f"{prompt:,}", *(ratio_words(at[prompt, output].ratio) for output in outputs)] for prompt in prompts]
    return table(
        tr("Disaggregated ÷ plain, capacity per GPU"),
        (tr("prompt tokens"), *(f"→ {output:,}" for output in outputs)),
        rows,
        {0},
        tr(
            "SIMULATED, the same limits for all lengths; each with its best split. A dash: nothing meets the limits there."
        ),
    )


def ratio_words(ratio: float) -> str:
    """Apart ÷ plain; of the two only one may carry anything."""
    return {float("inf"): tr("only apart"), 0.0: tr("only plain")}.get(ratio) or number(ratio)


def rates(curves: Sequence[Curve]) -> Table:
    rows = [_point(curve, operation) for curve in curves for operation in curve.operations]
    header = (tr("deployment"), tr("req/s per GPU"), tr("within limits"), *map(tr, _LATENCIES))
    return table(tr("Over rates"), header, rows, {0}, tr("SIMULATED."))


def _point(curve: Curve, operation: Operation) -> list[str]:
    latencies = (number(operation.latencies[name]) for name in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99"))
    per_gpu, within = number(operation.rate / curve.fleet.gpus), f"{operation.within:.0%}"
    return [curve.fleet.label, per_gpu, within, *latencies, number(operation.joules)]
