"""The report's figures, by file name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.sweep import Sweep
from pd_analysis.plots import attainment, bars, curves, fonts, heat, interference, style, sweep, timeline
from pd_analysis.words import translation


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
    Plot("ttft", "Time to first token by percentile", curves.ttft),
    Plot("tpot", "Time per output token by percentile", curves.tpot),
    Plot("gaps", "Gaps between token chunks, and the longest of each request, by percentile", curves.gaps),
    Plot("latency_breakdown", "Stages of the mean request and of the slowest 1 %", bars.latency_breakdown),
    Plot("ttft_breakdown", "Stages up to the first token around each percentile", bars.ttft_breakdown),
    Plot("kv_handoff_cdf", "Share of requests by the time of their KV hand-off", attainment.kv_handoff_cdf),
    Plot("slo_scale_attainment", "Share of requests within limits that are scaled", attainment.slo_scale),
    Plot(
        "interference_timeline",
        "Gaps of running requests along a few seconds, beside prefills of others",
        interference.interference_timeline,
    ),
    Plot("energy", "Joules per token by role", bars.energy),
    Plot(
        "power_timeline", "Power and clock of every GPU along the run, with requests by phase", timeline.power_timeline
    ),
)


SWEEP_PLOTS: Final = (
    *(
        SweepPlot(
            f"latency_rps_per_gpu_comparison_p{percentile}",
            f"TTFT and TPOT p{percentile} against the rate per GPU",
            sweep.latency(percentile),
        )
        for percentile in (90, 95, 99)
    ),
    SweepPlot("slo_attainment_rps_per_gpu_comparison", "Attainment against the rate per GPU", sweep.slo_attainment),
    SweepPlot("goodput_per_gpu", "Goodput per GPU against the rate per GPU", sweep.goodput),
    SweepPlot("throughput_interactivity_pareto", "Tokens per GPU against tokens of one reader", sweep.pareto),
    SweepPlot("energy_per_token_by_role", "Joules per token against the rate per GPU", sweep.energy_by_role),
    SweepPlot("energy_slo", "Joules per token against attainment", sweep.energy_against_slo),
)
HEAT: Final = "sweep_heat_map"


def draw(group: Group, folder: Path, lang: str = "en") -> list[Drawn]:
    """Draw what the group has into `folder`, as PNG and SVG; an older figure of what it has not is removed."""
    return _drawn([(plot.name, plot.alt, partial(plot.draw, group)) for plot in PLOTS], folder, lang)


def draw_sweep(swept: Sweep, folder: Path, lang: str = "en") -> list[Drawn]:
    """The same for a sweep."""
    return _drawn([(plot.name, plot.alt, partial(plot.draw, swept)) for plot in SWEEP_PLOTS], folder, lang)


def draw_heat(swept: Sequence[Sweep], folder: Path, lang: str = "en") -> list[Drawn]:
    """The heat map over all sweeps, or nothing."""
    return _drawn([(HEAT, "Throughput and latency of every rate", partial(heat.heat_map, swept))], folder, lang)


def clear(folder: Path) -> None:
    """Remove the figures of an earlier report, of which this one may have fewer."""
    names = {*(plot.name for plot in PLOTS), *(plot.name for plot in SWEEP_PLOTS), HEAT}
    for path in (*folder.glob("*.png"), *folder.glob("*.svg"), *folder.glob("*/*.png"), *folder.glob("*/*.svg")):
        if path.stem in names:
            path.unlink()


def readable(lang: str) -> bool:
    """True if this host has a font for figures in that language."""
    return lang == "en" or fonts.chinese_font() is not None


def _drawn(wanted: Sequence[tuple[str, str, Callable[[], Figure | None]]], folder: Path, lang: str) -> list[Drawn]:
    drawn = []
    font = None if lang == "en" else fonts.chinese_font()
    with style.apply(font), fonts.without_remarks():
        for name, alt, make in wanted:
            path = folder / f"{name}.png"
            figure = make()
            if figure is None:
                path.unlink(missing_ok=True)
                path.with_suffix(".svg").unlink(missing_ok=True)
                continue
            if font is not None:
                fonts.translate(figure, partial(translation.said, lang=lang))
            drawn.append(Drawn(name=name, alt=alt, path=path, svg=style.save(figure, path)))
    return drawn
