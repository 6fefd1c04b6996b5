"""The report's tables as data; `report` writes the same ones as HTML and as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis import formulas
from pd_analysis.energy import Energy, GpuEnergy, TokenEnergy, closure, total_of
from pd_analysis.frames import STAGES
from pd_analysis.measures import COMPARED, DECIDING, Comparison, compared
from pd_analysis.metrics import Distribution, StageMeans
from pd_analysis.results import Group, Result
from pd_analysis.runs import Problem
from pd_analysis.texts import DASH, ms, number, percent, ratio, setting, sizes, whole
from pd_contracts.latency import FORMULAS, PERCENTILES
from pd_contracts.names import Role, Topology

STAGE_NAMES: Final = {
    "queue": "Proxy queue",
    "prefill": "Prefill",
    "kv_and_first_decode": "KV + first decode",
    "decode": "Decode",
}
TONES: Final = ("better", "worse", "equal")
_DEFINED_TO: Final = 2  # runs, up to which the comparison has room for a column of definitions
_PERCENTILE_HEADS: Final = tuple(f"p{percentile}" for percentile in PERCENTILES)


@dataclass(frozen=True)
class Cell:
    """A text; `tone` is one of TONES or "", and is said in words too, so that no colour carries a meaning alone."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
        header: one a column; the first column names the row.
        words: columns (from 0) that hold words, to be set left; the others hold numbers, to be set right.
        caption: a sentence under the title, or "".
        merge: cells of a row that all say the same may be shown as one.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: frozenset[int] = frozenset({0})
    caption: str = ""
    merge: bool = False


def table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str | Cell]], words: Iterable[int], caption: str = ""
) -> Table:
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(title=title, header=tuple(header), rows=cells, words=frozenset(words), caption=caption)


def comparison(group: Group) -> Table:
    """Key numbers of every run, with the ratio to the baseline."""
    defined = len(group.results) <= _DEFINED_TO
    pairs = [
        name
        for other in group.others
        for name in (other.name, f"÷ {group.baseline.name}", *(["95 % of ratios"] if defined else []))
    ]
    header = ["", "Unit", group.baseline.name, *pairs, *(["Definition"] if defined else [])]
    rows = []
    for measure in COMPARED:
        cells: list[str | Cell] = [measure.title, measure.unit, measure.text(group.baseline)]
        for other in group.others:
            pair = compared(measure, group.baseline, other)
            cells += [measure.text(other), ratio_cell(pair), *([_interval(pair)] if defined else [])]
        rows.append([*cells, *([formulas.ALL[measure.formula]] if defined else [])])
    return table("Key numbers", header, rows, {0, 1, len(header) - 1} if defined else {0, 1})


def _interval(pair: Comparison) -> str:
    return "" if pair.interval is None else f"{ratio(pair.interval[0])} to {ratio(pair.interval[1])}"


def overview(groups: Sequence[Group]) -> Table:
    """Every run of every workload in the numbers that decide, in the order of request sizes, GPUs and rates."""
    results = sorted((result for group in groups for result in group.results), key=_place)
    workloads = [result.run.manifest.workload for result in results]
    kinds = dict.fromkeys(f"{load.dataset} data, {load.arrival} arrivals, {load.endpoint}" for load in workloads)
    columns = ["Data, arrivals and API"] if len(kinds) > 1 else []
    header = ["Tokens", "Run", "Requests/s", "per GPU", "Requests", "Failed", *columns]
    header += [f"{measure.title}, {measure.unit}" for measure in DECIDING]
    rows = [
        [
            sizes(load),
            result.label,
            setting(load.rate),
            number(result.metrics.per_gpu(load.rate)),
            whole(result.metrics.requests),
            whole(sum(result.metrics.failures.values())),
            *([f"{load.dataset} data, {load.arrival} arrivals, {load.endpoint}"] if columns else []),
            *(measure.text(result) for measure in DECIDING),
        ]
        for result, load in zip(results, workloads, strict=True)
    ]
    caption = "" if columns else f"{next(iter(kinds))}."
    return table("Every run", header, rows, {0, 1, 6} if columns else {0, 1}, caption[:1].upper() + caption[1:])


def _place(result: Result) -> tuple[int, int, int, bool, str, float]:
    load = result.run.manifest.workload
    return (
        load.input_tokens or 0,
        load.output_tokens or 0,
        result.metrics.gpus or 0,
        result.topology is not Topology.COMBINED,
        result.label,
        load.rate,
    )


def ratio_cell(pair: Comparison) -> Cell:
    """The ratio, and in words what it means for the compared run."""
    if pair.equal:
        return Cell(f"{ratio(pair.ratio)} equal", "equal")
    if pair.winner is None:
        return Cell(ratio(pair.ratio))
    word = "better" if pair.winner is pair.other else "worse"
    return Cell(word if pair.ratio is None else f"{ratio(pair.ratio)} {word}", word)


def percentiles(result: Result) -> Table:
    """Every latency of one run, with its definition beside it."""
    header = ["ms", "Values", "Mean", *_PERCENTILE_HEADS, "Definition"]
    rows = [[name, *_spread(values), FORMULAS[name]] for name, values in result.metrics.latencies.items()]
    return table(f"{result.name}: latency", header, rows, {0, len(header) - 1})


def _spread(values: Distribution) -> list[str]:
    return [whole(values.count), ms(values.mean), *(ms(values.at(percentile)) for percentile in PERCENTILES)]


def rates(group: Group) -> Table:
    """What was served a second, by the deployment and by each of its GPUs."""
    header = ["", "Unit", *(head for result in group.results for head in (result.name, "per GPU"))]
    names = ("Requests", "Output tokens", "All tokens", "Goodput")
    units = ("req/s", "tok/s", "tok/s", "req/s")
    columns = [
        (metrics.request_rate, metrics.output_rate, metrics.token_rate, metrics.goodput)
        for metrics in (result.metrics for result in group.results)
    ]
    rows = []
    for number_, (name, unit) in enumerate(zip(names, units, strict=True)):
        values = [
            text
            for result, column in zip(group.results, columns, strict=True)
            for text in (number(column[number_]), number(result.metrics.per_gpu(column[number_])))
        ]
        rows.append([name, unit, *values])
    caption = f"Throughput: {FORMULAS['Throughput']}. Per GPU: {formulas.PER_GPU}. Goodput: {FORMULAS['Goodput']}."
    return table("Throughput and goodput", header, rows, {0, 1}, caption)


def stages(group: Group) -> Table | None:
    """Where time went, as the proxy saw it; None if no run has it."""
    header = ["ms", "Requests", *STAGE_NAMES.values(), "Sum"]
    rows = []
    for result in group.results:
        means = result.metrics.stage_means
        if means:
            rows += [_stage_row(f"{result.name}, mean", means["all"])]
            rows += [
                [
                    f"{result.name}, p{percentile} of each stage",
                    "",
                    *(ms(result.metrics.stages[stage].at(percentile)) for stage in STAGES),
                    "",
                ]
                for percentile in PERCENTILES
            ]
            rows += [_stage_row(f"{result.name}, mean of the slowest 1 %", means["slowest"])]
    caption = f"Stages: {formulas.COUNTING['Stages']}. Percentiles of stages do not sum to a percentile of the whole. A combined engine hides its prefill in the first decode."
    return table("Stages of a request", header, rows, {0}, caption) if rows else None


def _stage_row(name: str, means: StageMeans) -> list[str]:
    return [name, whole(means.requests), *(number(means.stages[stage]) for stage in STAGES), number(means.total)]


def energy_by_role(group: Group) -> Table | None:
    """Joules by role; None if no run has power."""
    header = [
        *("", "GPUs", "Energy", "Mean power a GPU", "Static part"),
        *("J / prompt token", "J / output token", "J / token, both", "Closure, instant", "Closure, average", "Method"),
    ]
    rows = [
        row
        for result in group.results
        if result.energy is not None and result.tokens is not None
        for row in _role_rows(result.name, result.energy, result.tokens)
    ]
    caption = (
        f"Energy: {formulas.ENERGY['Energy']}. Closure: {formulas.ENERGY['Closure']}. Static part: {formulas.ENERGY['Static part']}. "
        "A role's joules are divided by the tokens that are its work; those of all GPUs by output tokens and by both, end to end."
    )
    return table("Energy by role", header, rows, {0, len(header) - 1}, caption) if rows else None


def _role_rows(name: str, energy: Energy, tokens: TokenEnergy) -> Iterable[list[str]]:
    work = {
        Role.PREFILL: (tokens.prefill_per_prompt, None, None),
        Role.DECODE: (None, tokens.decode_per_output, None),
        Role.COMBINED: (None, None, tokens.combined_per_token),
    }
    if len(energy.roles) > 1:
        for role in energy.roles:
            gpus = [gpu for gpu in energy.gpus if gpu.role is role]
            yield _energy_row(f"{name}, {role.value}", gpus, energy.window_s, energy.idle_j([role]), work[role])
    if energy.serving:
        whole_ = (None, tokens.per_output, tokens.per_token)
        yield _energy_row(f"{name}, all", energy.serving, energy.window_s, energy.idle_j(energy.roles), whole_)


def _energy_row(
    name: str, gpus: Sequence[GpuEnergy], seconds: float, static: float | None, per_token: Sequence[float | None]
) -> list[str]:
    total = total_of([gpu.energy_j for gpu in gpus])
    power = None if total is None or seconds <= 0 else total / seconds / len(gpus)
    return [
        name,
        str(len(gpus)),
        _with_unit(total, "J"),
        _with_unit(power, "W"),
        f"{number(static)} J ({percent(static / total)})" if total and static is not None else DASH,
        *("" if joules is None and total is not None else number(joules) for joules in per_token),
        *_closures(gpus),
        ", ".join(sorted({gpu.method or DASH for gpu in gpus})),
    ]


def _closures(gpus: Sequence[GpuEnergy]) -> list[str]:
    """Of the boards together, by instantaneous power and by the boards' averages."""
    counter = total_of([gpu.counter_j for gpu in gpus])
    integrals = total_of([gpu.integral_j for gpu in gpus]), total_of([gpu.average_j for gpu in gpus])
    found = [closure(integral, counter) for integral in integrals]
    return [DASH if share is None else f"{share * 100:+z.1f} %" for share in found]


def boards(group: Group) -> Table | None:
    """Every board that serves; None if no run has power."""
    header = ["", "Board", "Role", "Mean", "Peak", "Idle", "Counter", "Instant", "Average", "Slowed"]
    rows = [
        _board_row(result.name, gpu)
        for result in group.results
        if result.energy is not None
        for gpu in result.energy.serving
    ]
    caption = (
        "Counter: joules by the board's energy counter. Instant, average: joules by the integral of either power reading, and its "
        "closure. Slowed: throttling seen, as a share of samples."
    )
    return table("Energy by GPU", header, rows, {0, 1, 2, 9}, caption) if rows else None


def _board_row(name: str, gpu: GpuEnergy) -> list[str]:
    return [
        f"{name}, GPU {gpu.index}",
        gpu.name or DASH,
        gpu.role.value if gpu.role else DASH,
        _with_unit(gpu.mean_w, "W"),
        _with_unit(gpu.peak_w, "W"),
        _with_unit(gpu.idle_w, "W"),
        _with_unit(gpu.counter_j, "J"),
        *(
            f"{_with_unit(joules, 'J')} ({share})"
            for joules, share in zip((gpu.integral_j, gpu.average_j), _closures([gpu]), strict=True)
        ),
        ", ".join(f"{reason} {percent(share)}" for reason, share in gpu.throttled.items()) or "no",
    ]


def _with_unit(value: float | None, unit: str) -> str:
    return DASH if value is None else f"{number(value)} {unit}"


def failures(group: Group) -> Table:
    """What failed, by kind, with the first message of each."""
    rows = []
    for result in group.results:
        measured = result.requests.measured
        failed = measured[~measured["ok"]]
        for kind, part in failed.groupby("failure", sort=False):
            rows.append(
                [
                    result.name,
                    str(kind),
                    whole(len(part)),
                    percent(len(part) / len(measured)),
                    str(part["failure_message"].iloc[0]),
                ]
            )
        if failed.empty:
            rows.append([result.name, "none", "0", "0 %", ""])
    return table("Failures", ["", "Kind", "Requests", "Share", "First message"], rows, {0, 1, 4})


def left_out(problems: Sequence[Problem]) -> Table | None:
    """Folders that could not be used, with the reason; None if there are none."""
    rows = [[str(problem.path), problem.sentence] for problem in problems]
    return table("Left out", ["Folder", "Reason"], rows, {0, 1}) if rows else None


def definitions() -> Table:
    """Every formula, once."""
    return table("Definitions", ["Number", "Formula"], formulas.ALL.items(), {0, 1})
