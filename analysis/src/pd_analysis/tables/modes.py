"""Tables of the modes that send requests in groups: batches by size, and phases by difference."""

from collections.abc import Iterable

from pd_analysis.numbers.batches import Batch, batches
from pd_analysis.numbers.evaluation import ROLES, Group
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.phase_split import PhaseCost, phase_split
from pd_analysis.numbers.value import Value
from pd_analysis.tables.table import Table, table
from pd_analysis.words.formatting import DASH, mean_count, ms, number, whole, with_error
from pd_analysis.words.formulas import defined
from pd_analysis.words.language import tr
from pd_contracts.names import Role


def mode_table(group: Group) -> Table | None:
    """The table of the group's mode; None of loads that have none, or of runs in which nothing was served."""
    if group.pace is Pace.BATCHES:
        return _batch_table(group)
    return _phase_table(group) if group.pace is Pace.PHASES else None


def _batch_table(group: Group) -> Table | None:
    header = [
        *("", tr("Mode"), tr("At once"), tr("Batches"), tr("Failed")),
        *(tr("{measure}, {unit}", measure=f"{name} p50", unit="ms") for name in ("TTFT", "TPOT")),
        *(tr("Output tok/s"), tr("Output tok/s per GPU"), tr("J / output token")),
    ]
    rows = [
        [result.name, "batch", *_batch_cells(batch, result.metrics.per_gpu(batch.output_rate))]
        for result in group.results
        for batch in batches(result)
    ]
    caption = defined(("Batch", "Error of a short window"))
    return table(tr("Mode batch: by batch size"), header, rows, {0, 1}, caption) if rows else None


def _batch_cells(batch: Batch, per_gpu: float | None) -> Iterable[str]:
    return [
        whole(batch.size),
        whole(batch.batches),
        whole(batch.requests - batch.served),
        ms(batch.ttft_s),
        ms(batch.tpot_s),
        number(batch.output_rate),
        number(per_gpu),
        token_words(batch),
    ]


def _phase_table(group: Group) -> Table | None:
    header = [
        *("", tr("Mode"), tr("Phase"), tr("Requests"), tr("Tokens"), tr("Time per request")),
        *(tr("Energy per request"), tr("Power"), tr("Idle"), tr("J / token")),
    ]
    rows = [
        [result.name, "phase-split", *_phase_cells(cost)]
        for result in group.results
        if (found := phase_split(result)) is not None
        for cost in (found.prefill, found.decode)
    ]
    caption = defined(("Phases by difference", "Error of a short window"))
    return table(tr("Mode phase-split: prefill and decode"), header, rows, {0, 1, 2}, caption) if rows else None


def _phase_cells(cost: PhaseCost) -> Iterable[str]:
    return [
        tr(ROLES[Role(cost.phase)]),
        whole(cost.requests),
        mean_count(cost.tokens),
        cost_words(cost.time_s, "ms", scale=1e3),
        cost_words(cost.energy_j, "J"),
        cost_words(cost.power_w, "W"),
        DASH if cost.idle_w is None else f"{number(cost.idle_w)} W",
        cost_words(cost.token_j, "J"),
    ]


def cost_words(value: Value | None, unit: str, *, scale: float = 1.0) -> str:
    """24.1 ± 0.3 ms; a dash where nothing was recorded, unknown where the error hides it."""
    if value is None:
        return DASH
    words = with_error(value.value * scale, value.error * scale)
    return words if value.lost else f"{words} {unit}"


def token_words(batch: Batch) -> str:
    """Joules per output token of a batch, as `cost_words`."""
    return DASH if batch.token_j is None else with_error(batch.token_j.value, batch.token_j.error)
