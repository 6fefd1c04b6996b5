"""Why the numbers may be wrong or mean something else: each doubt is a sentence with its remedy, printed before any number."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis.doubts import comparability, modes, trust
from pd_analysis.doubts.answers import unfinished
from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.power import power
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.load import MODES, Pace
from pd_analysis.numbers.metrics import ENOUGH_FOR_P99
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.records.run import Problem
from pd_analysis.words.formatting import listed, ms, number, ratio
from pd_analysis.words.language import ntr, tr


@dataclass(frozen=True)
class Case:
    """A doubt, and the results that it is about."""

    doubt: Doubt
    results: tuple[Result, ...]


def doubts(group: Group, problems: Sequence[Problem] = ()) -> list[Doubt]:
    """All doubts about a group, the most serious first."""
    return of_cases(cases(group), problems)


def of_cases(found: Iterable[Case], problems: Iterable[Problem] = ()) -> list[Doubt]:
    """The doubts alone, with those about runs that were left out."""
    return weighed([*(case.doubt for case in found), *map(of_problem, problems)])


def cases(group: Group) -> list[Case]:
    """The doubts about comparing a group's runs, then those about each run."""
    return [
        *(Case(doubt, group.results) for check in comparability.OF_GROUP for doubt in check(group)),
        *(Case(doubt, (result,)) for result in group.results for check in _OF_RESULT for doubt in check(result)),
    ]


def weighed(found: Iterable[Doubt]) -> list[Doubt]:
    """Each doubt once, the most serious first."""
    return sorted(dict.fromkeys(found), key=lambda doubt: doubt.level is not Level.STOP)


def of_problem(problem: Problem) -> Doubt:
    """A run that was left out is a doubt too: the comparison may have lost its other side."""
    return Doubt(
        Level.CARE,
        tr("{path}: {sentence}.", path=problem.path, sentence=problem.sentence),
        tr("The run is part of the numbers below.") if problem.kept else tr("It is not part of the numbers below."),
    )


def _steady(result: Result) -> Iterable[Doubt]:
    if result.load.pace is not Pace.RATE:
        return  # in all other modes answers set the pace, so no queue can grow
    found = steadiness(result)
    if found.saturated:
        yield Doubt(
            Level.STOP,
            tr(
                "{run} was saturated: from the first third to the last its median TTFT grew {ttft_drift} and the requests in flight {flight_drift}, so its latencies depend on the duration of the measurement.",
                run=result.name,
                ttft_drift=ratio(found.ttft_drift),
                flight_drift=ratio(found.flight_drift),
            ),
            tr("Offer less (--rate), or give it more GPUs; compare only throughput at this rate."),
            tr("Saturated, so the latencies depend on the duration of the measurement"),
            single=True,
        )
    elif found.settle_s:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: the first {settle_s} s differ from the rest, like a warm-up.",
                run=result.name,
                settle_s=number(found.settle_s),
            ),
            tr(
                "Leave them out with --cut {settle_s}, or measure with a longer --warmup.",
                settle_s=math.ceil(found.settle_s),
            ),
            tr("The first seconds differ from the rest, like a warm-up"),
        )


def _failures(result: Result) -> Iterable[Doubt]:
    failures = result.metrics.failures
    if not failures:
        return
    failed, offered = sum(failures.values()), result.metrics.requests
    kinds = listed(f"{count:,} {kind}" for kind, count in failures.items())
    if failed == offered:
        yield Doubt(
            Level.STOP,
            tr("{run}: all requests failed ({kinds}), so it has no latencies.", run=result.name, kinds=kinds),
            tr("See the table of failures and the engines' logs."),
        )
        return
    yield Doubt(
        Level.CARE,
        tr(
            "{run}: {failed} of {offered} requests failed ({kinds}). Percentiles cover only the others, so they look better than they are.",
            run=result.name,
            failed=f"{failed:,}",
            offered=f"{offered:,}",
            kinds=kinds,
        ),
        tr("See the table of failures and the engines' logs; a fair comparison has none."),
    )


def _too_few(result: Result) -> Iterable[Doubt]:
    served = result.metrics.successes
    if result.load.pace in MODES:
        return  # their tables show medians of few requests, and say so
    if 0 < served < ENOUGH_FOR_P99:
        yield Doubt(
            Level.CARE,
            ntr(
                "{run}: a p99 of {count} request is almost the slowest request; at least {least} are needed, and 1,000 give a steady value.",
                "{run}: a p99 of {count} requests is almost the slowest request; at least {least} are needed, and 1,000 give a steady value.",
                served,
                run=result.name,
                least=ENOUGH_FOR_P99,
            ),
            tr("Offer the load for longer (--duration)."),
            tr("A p99 of fewer than {least} requests is almost the slowest of them", least=ENOUGH_FOR_P99),
        )


def _tokens(result: Result) -> Iterable[Doubt]:
    metrics = result.metrics
    if metrics.successes and (metrics.output_tokens is None or metrics.prompt_tokens is None):
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: the server did not report the tokens of every request, so token rates and joules per token are unknown.",
                run=result.name,
            ),
            tr("Use a server that answers stream_options.include_usage."),
            tr("The server did not report the tokens of every request"),
        )


def _gpus_unknown(result: Result) -> Iterable[Doubt]:
    if not result.metrics.gpus:
        yield Doubt(
            Level.CARE,
            tr("{run}: the number of GPUs is unknown, so nothing of it is given per GPU.", run=result.name),
            tr(
                "Say how many with --gpus of pd-loadgen; deployments that pdctl, Compose or Helm started say so themselves."
            ),
            tr("The number of GPUs is unknown"),
        )


def _lag(result: Result) -> Iterable[Doubt]:
    """Latency counts from the schedule, so that a client that sends late makes the server look slow; one that was told to wait does not."""
    if result.load.at_most is not None:
        return
    ttft, from_send = (result.metrics.latencies[name].at(99) for name in ("TTFT", "TTFT (from send)"))
    if ttft is not None and from_send is not None and ttft > from_send * 1.1:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: TTFT p99 is {ttft} ms from the schedule but {from_send} ms from the send; the client caused the difference.",
                run=result.name,
                ttft=ms(ttft),
                from_send=ms(from_send),
            ),
            tr("Give the load generator more CPU cores, apart from those of the engines."),
            tr("TTFT p99 counted from the schedule is longer than from the send; the client caused the difference"),
        )


_OF_RESULT: Final[tuple[Callable[[Result], Iterable[Doubt]], ...]] = (
    *trust.OF_RESULT,
    *modes.OF_RESULT,
    _lag,
    _steady,
    _failures,
    _too_few,
    _tokens,
    _gpus_unknown,
    power,
    unfinished,
)
