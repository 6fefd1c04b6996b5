"""The report's figures, by file name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.load import MODES, Pace
from pd_analysis.numbers.sweep import Sweep
from pd_analysis.plots import (
    attainment,
    bars,
    curves,
    fonts,
    heat,
    interference,
    modes,
    style,
    svg,
    sweep_curves,
    sweep_energy,
    timeline,
)
from pd_analysis.words.language import in_language, mark, tr


@dataclass(frozen=True)
class Plot:
    """A figure of a group; `draw` gives None where the group lacks what it shows."""

    name: str
    alt: str
    draw: Callable[[Group], Figure | None]


@dataclass(frozen=True)
class Drawn:
    """A figure on disk (`path` is the PNG) and as an element for a page."""

    name: str
    alt: str
    path: Path
    svg: str


@dataclass(frozen=True)
class SweepPlot:
    """A figure of a sweep; None where the sweep lacks what it shows."""

    name: str
    alt: str
    draw: Callable[[Sweep], Figure | None]


PLOTS: Final = (
    Plot("ttft", mark("Time to first token by percentile"), curves.ttft),
    Plot("tpot", mark("Time per output token by percentile"), curves.tpot),
    Plot("gaps", mark("Gaps between token chunks, and the longest of each request, by percentile"), curves.gaps),
    Plot("latency_breakdown", mark("Stages of the mean request and of the slowest 1%"), bars.latency_breakdown),
    Plot("ttft_breakdown", mark("Stages up to the first token around each percentile"), bars.ttft_breakdown),
    Plot("kv_handoff_cdf", mark("Share of requests by the time of their KV hand-off"), attainment.kv_handoff_cdf),
    Plot("slo_scale_attainment", mark("Share of requests within scaled limits"), attainment.slo_scale),
    Plot(
        "interference_timeline",
        mark("Gaps of running requests over a few seconds, next to the prefills of other requests"),
        interference.interference_timeline,
    ),
    Plot("batches", mark("Latency, throughput and energy by batch size"), modes.by_batch_size),
    Plot("phases", mark("Time, energy and power of prefill and decode"), modes.by_phase),
    Plot("energy", mark("Joules per token by role"), bars.energy),
    Plot(
        "power_timeline",
        mark("Power and clock of every GPU over the run, with requests by phase"),
        timeline.power_timeline,
    ),
)


RATE_PLOTS: Final = (
    *(
        SweepPlot(f"latency_rps_per_gpu_comparison_p{percentile}", alt, sweep_curves.latency(percentile))
        for percentile, alt in (
            (50, mark("TTFT and TPOT p50 against the rate per GPU")),
            (90, mark("TTFT and TPOT p90 against the rate per GPU")),
            (95, mark("TTFT and TPOT p95 against the rate per GPU")),
            (99, mark("TTFT and TPOT p99 against the rate per GPU")),
        )
    ),
    SweepPlot(
        "slo_attainment_rps_per_gpu_comparison",
        mark("Attainment against the rate per GPU"),
        sweep_curves.slo_attainment,
    ),
    SweepPlot("goodput_per_gpu", mark("Goodput per GPU against the rate per GPU"), sweep_curves.goodput),
    SweepPlot("throughput_interactivity_pareto", mark("Tokens per GPU against tokens per user"), sweep_curves.pareto),
    SweepPlot(
        "energy_per_token_by_role", mark("Joules per token against the rate per GPU"), sweep_energy.energy_by_role
    ),
    SweepPlot("energy_slo", mark("Least joules per token within the limits"), sweep_energy.energy_within_limits),
)
CONCURRENCY_PLOTS: Final = (
    SweepPlot("throughput_by_concurrency", mark("Output tokens against requests in flight"), sweep_curves.throughput),
    *(
        SweepPlot(f"latency_by_concurrency_p{percentile}", alt, sweep_curves.latency(percentile))
        for percentile, alt in (
            (50, mark("TTFT and TPOT p50 against requests in flight")),
            (90, mark("TTFT and TPOT p90 against requests in flight")),
            (99, mark("TTFT and TPOT p99 against requests in flight")),
        )
    ),
    SweepPlot(
        "slo_attainment_by_concurrency",
        mark("Attainment against requests in flight"),
        sweep_curves.slo_attainment,
    ),
    SweepPlot("throughput_interactivity_pareto", mark("Tokens per GPU against tokens per user"), sweep_curves.pareto),
    SweepPlot(
        "energy_per_token_by_concurrency",
        mark("Joules per token against requests in flight"),
        sweep_energy.energy_by_role,
    ),
)
HEAT: Final = "sweep_heat_map"
_OF_MODES: Final = ("batches", "phases", "power_timeline")


def draw(group: Group, folder: Path, lang: str = "en") -> list[Drawn]:
    """Draw the group's figures into `folder`, as PNG and SVG; older figures that it no longer has are removed."""
    wanted = [plot for plot in PLOTS if group.pace not in MODES or plot.name in _OF_MODES]
    return _drawn([(plot.name, plot.alt, partial(plot.draw, group)) for plot in wanted], folder, lang)


def draw_sweep(swept: Sweep, folder: Path, lang: str = "en") -> list[Drawn]:
    """The same for a sweep."""
    wanted = RATE_PLOTS if swept.axis.pace is Pace.RATE else CONCURRENCY_PLOTS
    return _drawn([(plot.name, plot.alt, partial(plot.draw, swept)) for plot in wanted], folder, lang)


def draw_heat(swept: Sequence[Sweep], folder: Path, lang: str = "en") -> list[Drawn]:
    """The heat map over all sweeps, or nothing."""
    return _drawn([(HEAT, mark("Throughput and latency of every rate"), partial(heat.heat_map, swept))], folder, lang)


def clear(folder: Path) -> None:
    """Remove the figures of an earlier report, of which this one may have fewer."""
    names = {*(plot.name for plot in PLOTS), *(plot.name for plot in (*RATE_PLOTS, *CONCURRENCY_PLOTS)), HEAT}
    for path in (*folder.glob("*.png"), *folder.glob("*.svg"), *folder.glob("*/*.png"), *folder.glob("*/*.svg")):
        if path.stem in names:
            path.unlink()


def readable(lang: str) -> bool:
    """True if this host has a font for figures in that language."""
    return lang == "en" or fonts.chinese_font() is not None


def _drawn(wanted: Sequence[tuple[str, str, Callable[[], Figure | None]]], folder: Path, lang: str) -> list[Drawn]:
    drawn = []
    font = None if lang == "en" else fonts.chinese_font()
    titles = [tr(alt) for _, alt, _ in wanted]
    with style.apply(font), fonts.without_remarks(), in_language("en" if font is None else lang):
        for (name, _, make), alt in zip(wanted, titles, strict=True):
            path = folder / f"{name}.png"
            figure = make()
            if figure is None:
                path.unlink(missing_ok=True)
                path.with_suffix(".svg").unlink(missing_ok=True)
                continue
            drawn.append(Drawn(name=name, alt=alt, path=path, svg=svg.save(figure, path)))
    return drawn
