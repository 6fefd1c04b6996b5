"""Where a request's time goes, and where the joules go."""

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pd_analysis.energy.window import TokenEnergy
from pd_analysis.numbers.evaluation import ROLES, Group, Result
from pd_analysis.plots import style
from pd_analysis.records.columns import STAGES
from pd_analysis.tables.performance import STAGE_NAMES
from pd_analysis.words.formatting import joined, ms, number
from pd_analysis.words.language import mark, tr
from pd_contracts.latency import PERCENTILES
from pd_contracts.names import Role

_ROW_IN: Final = 0.36
_LABEL_SHARE: Final = 0.075  # a part narrower than this share of the axis does not get its number written in

Bar = tuple[str, Mapping[str, float]]


def latency_breakdown(group: Group) -> Figure | None:
    """Stages of the mean request and of the slowest 1 %, up to the first token and over the whole request."""
    bars: list[Bar] = []
    for result in group.results:
        means = result.metrics.stage_means
        bars += [
            (f"{style.elided(result.name, 18)}\n{tr(words)}", means[key].stages)
            for key, words in _WHICH.items()
            if key in means
        ]
    if not bars:
        return None
    subtitle = tr("Mean stages as the proxy timed them. A combined engine hides its prefill in the first decode step.")
    figure = style.canvas(
        _breakdown_title(group), subtitle, _ROW_IN * len(bars) + 0.2, simulated=group.simulated, left=1.35, entries=4
    )
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.12})
    early = [(name, {stage: stages[stage] for stage in STAGES[:-1]}) for name, stages in bars]
    _stacked(left, early, style.STAGE_COLOURS, tr("ms up to the first token"))
    _stacked(right, bars, style.STAGE_COLOURS, tr("ms of the whole request"))
    style.key(figure, _patches({tr(STAGE_NAMES[stage]): style.STAGE_COLOURS[stage] for stage in STAGES}))
    return figure


def ttft_breakdown(group: Group) -> Figure | None:
    """Stages up to the first token at each percentile's neighbourhood: the requests around p50, p90, p95 and p99 of TTFT."""
    bars = [
        (f"{style.elided(result.name, 18)}\n{tr('around p{percentile}', percentile=percentile)}", stages)
        for result in group.results
        for percentile, stages in around_percentiles(result).items()
    ]
    if not bars:
        return None
    subtitle = tr(
        "Mean stages of the {share} % of requests whose TTFT is nearest to the percentile; before the proxy: client and network.",
        share=AROUND,
    )
    words = joined(
        f"{style.elided(result.name)} {ms(result.metrics.latencies['TTFT'].at(99))} ms" for result in group.results[:3]
    )
    figure = style.canvas(
        tr("Where the time to first token goes; p99: {runs}", runs=words),
        subtitle,
        _ROW_IN * len(bars) + 0.2,
        simulated=group.simulated,
        left=1.35,
        entries=4,
    )
    axes = figure.subplots()
    _stacked(axes, bars, _EARLY_COLOURS, tr("ms up to the first token"))
    style.key(figure, _patches({tr(_EARLY_NAMES[stage]): colour for stage, colour in _EARLY_COLOURS.items()}))
    return figure


AROUND: Final = 2  # per cent of requests, so that a bar is more than one request's luck
_EARLY_COLOURS: Final = {"before": style.SKY, **{stage: style.STAGE_COLOURS[stage] for stage in STAGES[:-1]}}
_EARLY_NAMES: Final = {"before": mark("Before the proxy"), **STAGE_NAMES}


def around_percentiles(result: Result) -> dict[int, dict[str, float]]:
    """Mean ms of each stage up to the first token, by percentile of TTFT; empty if the proxy told no stages."""
    timed = result.requests.served.dropna(subset=[*STAGES, "ttft"]).sort_values("ttft")
    if timed.empty:
        return {}
    width = max(1, round(len(timed) * AROUND / 100))
    found = {}
    for percentile in PERCENTILES:
        middle = round((len(timed) - 1) * percentile / 100)
        first = min(max(0, middle - width // 2), len(timed) - width)
        part = timed.iloc[first : first + width]
        stages = {stage: float(part[stage].mean()) for stage in STAGES[:-1]}
        before = float(part["ttft"].mean()) * 1e3 - sum(stages.values())
        found[percentile] = {"before": max(before, 0.0), **stages}
    return found


_WHICH: Final = {"all": mark("mean"), "slowest": mark("slowest 1 %")}


def _breakdown_title(group: Group) -> str:
    early = {
        style.elided(result.name): sum(means["all"].stages[stage] for stage in STAGES[:-1])
        for result in group.results[:3]
        if (means := result.metrics.stage_means)
    }
    runs = joined(f"{name} {number(time)} ms" for name, time in early.items())
    return tr("Mean time to the first token, at the proxy: {runs}", runs=runs)


def energy(group: Group) -> Figure | None:
    """Joules an output token by the role that spent them, and joules a token of each role's own work."""
    with_tokens = [
        (result.name, result.tokens) for result in group.results if result.tokens and result.tokens.parts_per_output
    ]
    if not with_tokens:
        return None
    whole = [
        (style.elided(name, 18), {role.value: part for role, part in tokens.parts_per_output.items()})
        for name, tokens in with_tokens
    ]
    own = [bar for name, tokens in with_tokens for bar in _own_work(style.elided(name, 18), tokens)]
    rows = max(len(whole), len(own))
    colours = {role.value: colour for role, colour in style.ROLE_COLOURS.items()}
    used = {
        tr("{role} GPUs", role=tr(ROLES[role])): colour
        for role, colour in style.ROLE_COLOURS.items()
        if any(role.value in parts for _, parts in whole)
    }
    subtitle = tr(
        "Left: all GPUs over output tokens, end to end. Right: each role's GPUs over the tokens that are their work."
    )
    figure = style.canvas(
        _energy_title(group), subtitle, 0.42 * rows + 0.3, simulated=group.simulated, left=1.35, entries=4
    )
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.55})
    _stacked(left, whole, colours, tr("J per output token"))
    _stacked(right, own, colours, tr("J per token of the role's own work"))
    style.key(figure, _patches(used))
    return figure


def _own_work(name: str, tokens: TokenEnergy) -> list[Bar]:
    parts = {
        (Role.PREFILL, tr("per prompt token")): tokens.prefill_per_prompt,
        (Role.DECODE, tr("per output token")): tokens.decode_per_output,
        (Role.COMBINED, tr("per token, both")): tokens.combined_per_token,
    }
    return [
        (f"{style.with_role(name, role)}\n{over}", {role.value: joules})
        for (role, over), joules in parts.items()
        if joules is not None
    ]


def _energy_title(group: Group) -> str:
    values = [(style.elided(result.name), result.tokens.per_output) for result in group.results[:3] if result.tokens]
    runs = joined(f"{name} {number(value)} J" for name, value in values)
    return tr("Energy per output token: {runs}", runs=runs)


def _stacked(axes: Axes, bars: Sequence[Bar], colours: Mapping[str, str], label: str) -> None:
    """Horizontal bars, the first on top; numbers in the parts that have room and the sum behind each bar."""
    widest = max(sum(parts.values()) for _, parts in bars) or 1.0
    for row, (_, parts) in enumerate(bars):
        start = 0.0
        for part, value in parts.items():
            axes.barh(row, value, left=start, height=0.62, color=colours[part], edgecolor=style.PAPER, linewidth=0.8)
            if value > widest * _LABEL_SHARE * 1.6 and len([part for part in parts.values() if part]) > 1:
                axes.text(start + value / 2, row, number(value), ha="center", va="center", size=8, color=style.ON_BAR)
            start += value
        axes.text(start + widest * 0.015, row, number(start), va="center", size=9, weight="bold")
    style.quiet(axes, grid="x")
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.17)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel(label)


def _patches(colours: Mapping[str, str]) -> list[Patch]:
    return [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
