"""Where a request's time goes, and where the joules go."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pd_analysis.energy.joules import TokenEnergy
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.records.columns import STAGES
from pd_analysis.tables.performance import STAGE_NAMES
from pd_analysis.words.formatting import DASH, listed, ms, number, sentences
from pd_analysis.words.language import mark, tr
from pd_contracts.latency import PERCENTILES
from pd_contracts.names import Role

_ROW_IN: Final = 0.36
_LABEL_SHARE: Final = 0.075  # a part narrower than this share of the axis does not get its number written in

_NARROW: Final = 1.18  # more room behind the bars of narrow panels, for the same numbers

Bar = tuple[str, Mapping[str, float]]


def latency_breakdown(group: Group) -> Figure | None:
    """Stages of the mean request and of the slowest 1%, up to the first token and over the whole request."""
    bars: list[Bar] = []
    for result in group.results:
        means = result.metrics.stage_means
        bars += [
            (f"{style.elided(result.name, 22)}\n{tr(words)}", means[key].stages)
            for key, words in _WHICH.items()
            if key in means
        ]
    if not bars:
        return None
    subtitle = tr("Mean stages as the proxy timed them. A combined engine hides its prefill in the first decode step.")
    figure = style.canvas(
        _breakdown_title(group),
        subtitle,
        _ROW_IN * len(bars) + 0.2,
        simulated=group.simulated,
        left=style.room_for(name for name, _ in bars),
        entries=4,
    )
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.12})
    early = [(name, {stage: stages[stage] for stage in STAGES[:-1]}) for name, stages in bars]
    _stacked(left, early, palette.STAGE_COLOURS, tr("ms up to the first token"))
    _stacked(right, bars, palette.STAGE_COLOURS, tr("ms of the whole request"))
    style.key(figure, _patches({tr(STAGE_NAMES[stage]): palette.STAGE_COLOURS[stage] for stage in STAGES}))
    return figure


def ttft_breakdown(group: Group) -> Figure | None:
    """Stages up to the first token at each percentile's neighbourhood: the requests around p50, p90, p95 and p99 of TTFT."""
    bars = [
        ("\n".join((style.elided(result.name, 22), tr("around p{percentile}", percentile=percentile))), stages)
        for result in group.results
        for percentile, stages in around_percentiles(result).items()
    ]
    if not bars:
        return None
    subtitle = tr(
        "Mean stages of the {share}% of requests whose TTFT is nearest to the percentile; before the proxy: client and network.",
        share=AROUND,
    )
    tails = [(result.name, result.metrics.latencies["TTFT"].at(99)) for result in group.results]
    figure = style.canvas(
        tr(
            "Where the time to first token goes; p99: {runs}",
            runs=best_first(tails, lambda seconds: f"{ms(seconds)} ms"),
        ),
        subtitle,
        _ROW_IN * len(bars) + 0.2,
        simulated=group.simulated,
        left=style.room_for(name for name, _ in bars),
        entries=4,
    )
    axes = figure.subplots()
    _stacked(axes, bars, _EARLY_COLOURS, tr("ms up to the first token"))
    style.key(figure, _patches({tr(_EARLY_NAMES[stage]): colour for stage, colour in _EARLY_COLOURS.items()}))
    return figure


AROUND: Final = 2  # per cent of requests, so that a bar is more than one request's luck
_EARLY_COLOURS: Final = {"before": palette.SKY, **{stage: palette.STAGE_COLOURS[stage] for stage in STAGES[:-1]}}
_EARLY_NAMES: Final = {"before": mark("Before the proxy"), **STAGE_NAMES}


def around_percentiles(result: Result) -> dict[int, dict[str, float]]:
    """Mean ms of each stage up to the first token, by percentile of TTFT; empty if the proxy reported no stages."""
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


_WHICH: Final = {"all": mark("mean"), "slowest": mark("slowest 1%")}


def _breakdown_title(group: Group) -> str:
    early = [
        (result.name, sum(means["all"].stages[stage] for stage in STAGES[:-1]))
        for result in group.results
        if (means := result.metrics.stage_means)
    ]
    runs = best_first(early, lambda time: f"{number(time)} ms")
    return tr("Mean time to the first token, at the proxy: {runs}", runs=runs)


def energy(group: Group) -> Figure | None:
    """Joules per output token by the role that spent them; where phases are apart, also joules per prompt token on prefill GPUs and per output token on decode GPUs."""
    found = [
        (result.name, result.tokens) for result in group.results if result.tokens and result.tokens.parts_per_output
    ]
    if not found:
        return None
    names = [style.elided(name, 22) for name, _ in found]
    roles = [role for role in Role if any(role in tokens.parts_per_output for _, tokens in found)]
    panels = [panel for panel in _OWN if any(panel[2](tokens) is not None for _, tokens in found)]
    figure = style.canvas(
        _energy_title(group),
        _energy_note(group, several=bool(panels)),
        0.42 * len(found) + 0.3,
        simulated=group.simulated,
        left=style.room_for(names),
        entries=len(roles),
        bottom=0.68,
    )
    first, *others = figure.subplots(
        1,
        1 + len(panels),
        squeeze=False,
        sharey=True,
        gridspec_kw={"wspace": 0.1, "width_ratios": (1.6, *[1] * len(panels))},
    )[0]
    colours = {role.value: colour for role, colour in palette.ROLE_COLOURS.items()}
    whole = [
        (name, {role.value: part for role, part in tokens.parts_per_output.items()})
        for name, (_, tokens) in zip(names, found, strict=True)
    ]
    _stacked(first, whole, colours, tr("all GPUs,\nJ per output token"))
    for axes, (role, title, get) in zip(others, panels, strict=True):
        joules = [get(tokens) for _, tokens in found]
        own = [(name, {} if each is None else {role.value: each}) for name, each in zip(names, joules, strict=True)]
        _stacked(axes, own, colours, tr(title))
        axes.tick_params(labelleft=False)
        axes.set_xlim(0, axes.get_xlim()[1] * _NARROW)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    used = {_ROLE_GPUS[role]: palette.ROLE_COLOURS[role] for role in roles}
    style.key(figure, _patches({tr(words): colour for words, colour in used.items()}))
    return figure


_OWN: Final[tuple[tuple[Role, str, Callable[[TokenEnergy], float | None]], ...]] = (
    (Role.PREFILL, mark("prefill GPUs,\nJ per prompt token"), lambda tokens: tokens.prefill_per_prompt),
    (Role.DECODE, mark("decode GPUs,\nJ per output token"), lambda tokens: tokens.decode_per_output),
)
_ROLE_GPUS: Final = {
    Role.PREFILL: mark("prefill GPUs"),
    Role.DECODE: mark("decode GPUs"),
    Role.COMBINED: mark("combined GPUs"),
}


def _energy_title(group: Group) -> str:
    values = [(result.name, result.tokens.per_output) for result in group.results if result.tokens]
    return tr("Energy per output token: {runs}", runs=best_first(values, lambda joules: f"{number(joules)} J"))


def _energy_note(group: Group, *, several: bool) -> str:
    unknown = [result.name for result in group.results if not result.tokens or result.tokens.per_output is None]
    scale = mark("Each panel has its own scale: an output token costs many times what a prompt token does.")
    return sentences(
        [
            *([tr(scale)] if several else []),
            *([tr("Unknown for {runs}: see the doubts.", runs=listed(unknown))] if unknown else []),
        ]
    )


def _stacked(axes: Axes, bars: Sequence[Bar], colours: Mapping[str, str], label: str) -> None:
    """Horizontal bars, the first on top; numbers in the parts that have room and the sum behind each bar."""
    widest = max(sum(parts.values()) for _, parts in bars) or 1.0
    for row, (_, parts) in enumerate(bars):
        start = 0.0
        for part, value in parts.items():
            axes.barh(row, value, left=start, height=0.62, color=colours[part], edgecolor=palette.PAPER, linewidth=0.8)
            if value > widest * _LABEL_SHARE * 1.6 and len([part for part in parts.values() if part]) > 1:
                axes.text(start + value / 2, row, number(value), ha="center", va="center", size=8, color=palette.ON_BAR)
            start += value
        axes.text(start + widest * 0.015, row, number(start) if parts else DASH, va="center", size=9, weight="bold")
    style.quiet(axes, grid="x")
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.17)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    style.grouped(axes.xaxis)
    axes.set_xlabel(label)


def _patches(colours: Mapping[str, str]) -> list[Patch]:
    return [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
