"""Findings over several loads: the highest load of each deployment within the limits, where two deployments cross, and the best ratio of GPUs."""

from typing import Final

from pd_analysis.numbers.comparison import Outcome, compared, judged
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.measures import GOODPUT, JOULES, TPOT_P99, TTFT_P99, Measure
from pd_analysis.numbers.sweep import ATTAINMENT, Axis, Series, Sweep, best_rate, beyond, break_even, piled_up
from pd_analysis.words.formatting import clauses, joined, listed, mean_count, number, percent, setting
from pd_analysis.words.language import mark, ntr, tr
from pd_contracts.names import Role

TOO_CLOSE: Final = 0.10  # a knee between two measured points moves by so much, or more, with the length of the runs
CROSSED: Final = (TTFT_P99, TPOT_P99, GOODPUT, JOULES)


def of_sweep(sweep: Sweep) -> tuple[str, ...]:
    """Findings over several rates: the highest rate within the limits, where two deployments cross, and the best ratio of GPUs."""
    sentences = [*_best_rates(sweep), *_piled_up(sweep), *_left_out(sweep), _best_ratio(sweep)]
    for baseline, other in pairs(sweep):
        found = [text for measure in CROSSED if (text := _crossed(measure, baseline, other))]
        if found:
            sentences.append(
                tr(
                    "{other} against {baseline}: {findings}.",
                    other=other.name,
                    baseline=baseline.name,
                    findings=clauses(found),
                )
            )
    return tuple(sentence for sentence in sentences if sentence)


def pairs(sweep: Sweep) -> list[tuple[Series, Series]]:
    """Each other deployment with plain serving on as many GPUs, or on the nearest number of them."""
    first = sweep.series[0]
    plain = [series for series in sweep.series if series.plain] or [first]
    others = [series for series in sweep.series if series not in plain]
    return [(min(plain, key=lambda one: abs((one.gpus or 0) - (other.gpus or 0))), other) for other in others]


def _best_rates(sweep: Sweep) -> list[str]:
    """The highest rate at which each deployment meets the limits, the best first."""
    if not sweep.limits:
        return _most_tokens(sweep)
    found = sorted(((best_rate(series) or 0.0, series) for series in sweep.series), key=lambda pair: -pair[0])
    most = found[0][0]
    holes = {
        "limits": joined(f"{name.upper()} ≤ {setting(limit)} ms" for name, limit in sweep.limits.items()),
        "share": percent(ATTAINMENT),
        "unit": sweep.axis.unit,
    }
    if not most:
        return [
            tr(
                "No deployment meets {limits} for {share} of requests, even at the lowest load that was measured.",
                **holes,
            )
        ]
    near = [(amount, series) for amount, series in found if amount * (1 + TOO_CLOSE) >= most or beyond(series)]
    others = [(amount, series) for amount, series in found if (amount, series) not in near]
    rest = joined(_up_to(series, amount) for amount, series in others)
    if len(near) == 1:
        first = _up_to(near[0][1], most)
        message = (
            mark("Highest load within {limits} for {share} of requests: {first} {unit}. Then: {rest}.")
            if rest
            else mark("Highest load within {limits} for {share} of requests: {first} {unit}.")
        )
        return [tr(message, first=first, rest=rest, **holes)]
    first = listed(_up_to(series, amount) for amount, series in near)
    message = (
        mark("Too close to call: {first} {unit} within {limits} for {share} of requests. Then: {rest}.")
        if rest
        else mark("Too close to call: {first} {unit} within {limits} for {share} of requests.")
    )
    return [tr(message, first=first, rest=rest, **holes)]


def _up_to(series: Series, amount: float) -> str:
    if all(result.unfit for result in series.results):
        return tr("{run} unknown", run=series.name)
    if not amount:
        return tr("{run} not even at the lowest load that was measured", run=series.name)
    if beyond(series):
        message = mark("{run} at least {amount}")
    else:
        message = mark("{run} {amount}") if piled_up(series) is None else mark("{run} at most {amount}")
    return tr(message, run=series.name, amount=_placed(series.axis, amount))


def _placed(axis: Axis, place: float) -> str:
    """A place on an axis; a number of requests in flight is whole where it was chosen."""
    return mean_count(place) if axis.pace is Pace.IN_FLIGHT else number(place)


def _piled_up(sweep: Sweep) -> list[str]:
    """What “at most” means, and for which deployments."""
    found = [(series, place) for series in sweep.series if sweep.limits and (place := piled_up(series)) is not None]
    if not found:
        return []
    each = joined(
        tr("{run} from {place} {unit}", run=series.name, place=_placed(sweep.axis, place), unit=sweep.axis.unit)
        for series, place in found
    )
    return [
        tr(
            "Requests were already piling up while the limits were met, so these results hold only for the duration that was measured: {places}.",
            places=each,
        )
    ]


def _left_out(sweep: Sweep) -> list[str]:
    """How many points are unfit for a decision."""
    unfit = sum(bool(result.unfit) for series in sweep.series for result in series.results)
    if not unfit:
        return []
    return [
        ntr(
            "{count} of {all} points is left out; the doubts give the reason.",
            "{count} of {all} points are left out; the doubts give the reasons.",
            unfit,
            all=sum(len(series.results) for series in sweep.series),
        )
    ]


def _most_tokens(sweep: Sweep) -> list[str]:
    """Without limits: the highest output rate of each deployment."""
    peaks = []
    for series in sweep.series:
        points = series.points(lambda result: sweep.axis.share(result, result.metrics.output_rate))
        if points:
            place, rate = max(points, key=lambda point: point[1])
            peaks.append((rate, series.name, place))
    if not peaks:
        return []
    unit = tr("tok/s per GPU") if sweep.axis.per_gpu else tr("tok/s")
    each = (
        tr(
            "{run} {rate} {unit} at {place} {axis}",
            run=name,
            rate=number(rate),
            unit=unit,
            place=_placed(sweep.axis, place),
            axis=sweep.axis.unit,
        )
        for rate, name, place in sorted(peaks, reverse=True)
    )
    return [tr("Most output tokens: {peaks}.", peaks=joined(each))]


def _crossed(measure: Measure, one: Series, two: Series) -> str:
    """Where two deployments change places; only differences beyond the noise count as being ahead."""
    theirs = {two.axis.place(result): result for result in two.results}
    found = [
        (place, _beside(measure, result, theirs[place]))
        for result in one.results
        if (place := one.axis.place(result)) is not None and place in theirs
    ]
    known = [outcome for _, outcome in found if outcome is not Outcome.UNKNOWN]
    if len(known) < 2:
        return ""
    ahead = [
        one if outcome is Outcome.WORSE else two for outcome in known if outcome in (Outcome.BETTER, Outcome.WORSE)
    ]
    if not ahead:
        return tr("{measure}, no clear difference anywhere", measure=measure.phrase)
    if one in ahead and two in ahead:
        crossings = break_even(one.points(measure.get), two.points(measure.get))
        at = listed(f"{number(place)}" for place in crossings[:3])
        if not at:
            return tr("{measure}, the lead changes back and forth", measure=measure.phrase)
        return tr("{measure}, break-even at {places} {unit}", measure=measure.phrase, places=at, unit=one.axis.unit)
    if len(ahead) == len(known):
        return tr("{measure}, {run} ahead everywhere", measure=measure.phrase, run=ahead[0].name)
    return tr(
        "{measure}, {run} ahead at {some} of {all} points and no clear difference at the others",
        measure=measure.phrase,
        run=ahead[0].name,
        some=len(ahead),
        all=len(known),
    )


def _beside(measure: Measure, one: Result, two: Result) -> Outcome:
    """The outcome at one place of two curves, which may be of deployments with other numbers of GPUs, and so of other loads."""
    if one.load == two.load:
        return compared(measure, one, two).outcome
    return judged(measure, one, two)


def _best_ratio(sweep: Sweep) -> str:
    """Among disaggregated deployments of different numbers of prefill and decode engines, the one with the most goodput per GPU."""
    peaks: dict[str, tuple[float, Series]] = {}
    for series in sweep.series:
        shape = ratio_of(series.results[0])
        values = [value for _, value in series.points(GOODPUT.get)]
        if shape and values and (shape not in peaks or max(values) > peaks[shape][0]):
            peaks[shape] = max(values), series
    if len(peaks) < 2:
        return ""
    (best, (most, _)), (next_, (less, _)) = sorted(peaks.items(), key=lambda item: -item[1][0])[:2]
    return tr(
        "Of the measured ratios of prefill to decode, {best} gives the most goodput per GPU ({most} req/s; {next}: {less} req/s).",
        best=best,
        most=number(most),
        next=next_,
        less=number(less),
    )


def ratio_of(result: Result) -> str:
    """2P1D and the like; empty for plain serving or unknown engines."""
    roles = [engine.role for engine in result.run.manifest.deployment.engines]
    prefill, decode = roles.count(Role.PREFILL), roles.count(Role.DECODE)
    return f"{prefill}P{decode}D" if prefill and decode else ""
