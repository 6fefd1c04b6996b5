"""The deciding findings in a few sentences: the top of the report, and what a terminal shows if there are many loads."""

from collections.abc import Sequence
from dataclasses import dataclass

from pd_analysis.conclusions.modes import of_mode
from pd_analysis.conclusions.sweeps import of_sweep
from pd_analysis.conclusions.verdict import verdict
from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.load import MODES
from pd_analysis.numbers.sweep import Sweep
from pd_analysis.words.formatting import sizes
from pd_analysis.words.language import ntr, tr


@dataclass(frozen=True)
class Short:
    """The deciding findings; `caveat` gives the reason not to act on them, or is ""."""

    sentences: tuple[str, ...]
    caveat: str


def in_short(
    swept: Sequence[tuple[Sweep, Sequence[str]]], told: Sequence[tuple[Group, Sequence[str]]], doubts: Sequence[Doubt]
) -> Short:
    """The first finding of every sweep and of every mode; without a sweep, the verdict on every load that has a chapter."""
    curves = [(_sizes(sweep), findings[0]) for sweep, findings in swept if findings]
    loads = [
        (_offered(group), text) for group, said in told if not curves or group.pace in MODES for text in said if text
    ]
    alone = len(swept) + len(told) == 1 or len(curves) + len(loads) == 1
    sentences = tuple(
        text if alone else tr("{load}: {verdict}", load=load, verdict=text) for load, text in (*curves, *loads)
    )
    stops = sum(doubt.level is Level.STOP and not (curves and doubt.single) for doubt in doubts)
    caveat = ntr(
        "A doubt below is more serious than this result: do not base a decision on it.",
        "{count} doubts below are more serious than this result: do not base a decision on it.",
        stops,
    )
    return Short(sentences, caveat if stops and sentences else "")


def of_loads(swept: Sequence[Sweep], groups: Sequence[Group], doubts: Sequence[Doubt]) -> Short:
    """As `in_short`, with sections and sweeps computed here."""
    told = [(group, of_mode(group) or [pair.lead for pair in verdict(group, ()).pairs]) for group in groups]
    return in_short([(sweep, of_sweep(sweep)) for sweep in swept], told, doubts)


def _offered(group: Group) -> str:
    if group.pace not in MODES:
        return group.workload
    load = group.baseline.run.manifest.workload
    return tr("Mode {mode}, {sizes} tokens", mode=load.arrival, sizes=sizes(load))


def _sizes(sweep: Sweep) -> str:
    return tr("{sizes} tokens", sizes=sizes(sweep.series[0].results[0].run.manifest.workload))
