"""What to do, written from the numbers: limits, rates, prompt lengths, P:D ratios, what limits each deployment, joules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis.numbers.bootstrap import interval, of_rate
from pd_analysis.numbers.evaluation import ROLES, Group, Result
from pd_analysis.numbers.measures import GOODPUT, JOULES, TPOT_P99, TTFT_P99, Measure, compared
from pd_analysis.numbers.slo_attainment import attainment, round_limits
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.numbers.sweep import ATTAINMENT, Series, Sweep, best_rate, beyond, break_even, rate_per_gpu
from pd_analysis.records.columns import STAGES
from pd_analysis.tables.table import Cell, Table
from pd_analysis.words.formatting import DASH, clauses, joined, listed, number, percent, setting
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role, Topology

BUSY: Final = 0.9  # share of the time with a kernel running, from which a GPU is called busy
_CROSSED: Final = (TTFT_P99, TPOT_P99, GOODPUT, JOULES)
_SPENT: Final = {
    "queue": mark("{share} waiting in the proxy"),
    "prefill": mark("{share} prefill"),
    "kv_and_first_decode": mark("{share} the KV hand-off and first decode step"),
}


@dataclass(frozen=True)
class Conclusion:
    """Sentences, and the table that shows which deployment keeps which limits; None where no latency was measured."""

    sentences: tuple[str, ...]
    limits: Table | None


def of_group(group: Group) -> Conclusion:
    """What one rate tells."""
    return Conclusion(
        sentences=tuple(sentence for result in group.results if (sentence := bottleneck(result))),
        limits=limits_table(group),
    )


def of_sweep(sweep: Sweep) -> tuple[str, ...]:
    """What several rates tell: the highest rate within the limits, where two deployments cross, and the best ratio of GPUs."""
    sentences = [*_best_rates(sweep), _best_ratio(sweep)]
    for baseline, other in pairs(sweep):
        found = [text for measure in _CROSSED if (text := _crossed(measure, baseline, other))]
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
    """Each disaggregated deployment with plain serving on as many GPUs, or on the nearest number of them."""
    first = sweep.series[0]
    plain = [series for series in sweep.series if series.topology is Topology.COMBINED] or [first]
    others = [series for series in sweep.series if series not in plain]
    return [(min(plain, key=lambda one: abs((one.gpus or 0) - (other.gpus or 0))), other) for other in others]


def of_lengths(results: Sequence[Result]) -> tuple[str, ...]:
    """Where prompts become long enough for the other deployment, over loads that differ in prompt length alone."""
    cells: dict[tuple[object, ...], dict[str, list[Result]]] = {}
    for result in results:
        load = result.run.manifest.workload
        if load.input_tokens is not None:
            cell = (load.rate, load.output_tokens, load.dataset, load.arrival, load.endpoint)
            cells.setdefault(cell, {}).setdefault(result.label, []).append(result)
    found: list[str] = []
    for series in cells.values():
        ordered = sorted(series.items(), key=lambda item: item[1][0].topology is not Topology.COMBINED)
        for name, others in ordered[1:]:
            found += _crossed_lengths(others[0].run.manifest.workload.rate, ordered[0], (name, others))
    return tuple(found)


def bottleneck(result: Result) -> str:
    """What limits a deployment at this rate: where the time to first token goes, and which GPUs are busy."""
    parts = [text for text in (_first_token(result), _busy(result)) if text]
    return tr("{run}: {findings}.", run=result.name, findings=clauses(parts)) if parts else ""


def _first_token(result: Result) -> str:
    means = result.metrics.stage_means.get("all")
    early = {stage: means.stages[stage] for stage in STAGES[:-1]} if means else {}
    total = sum(early.values())
    if not total:
        return ""
    if not early["prefill"]:
        return tr(
            "{total} ms to the first token, which plain serving does not divide into prefill and decode",
            total=number(total),
        )
    shares = [
        tr(message, share=percent(early[stage] / total))
        for stage, message in _SPENT.items()
        if early[stage] / total >= 0.01
    ]
    return tr("of {total} ms to the first token, {shares}", total=number(total), shares=listed(shares))


def _busy(result: Result) -> str:
    energy = result.energy
    if energy is None:
        return ""
    shares = {
        role: [gpu.busy for gpu in energy.serving if gpu.role is role and gpu.busy is not None] for role in energy.roles
    }
    means = {role: sum(values) / len(values) for role, values in shares.items() if values}
    if not means:
        return ""
    words = listed(
        tr("{role} GPUs busy {share} of the time", role=tr(ROLES[role]), share=percent(share))
        for role, share in means.items()
    )
    full = [role for role, share in means.items() if share >= BUSY]
    return tr("{busy}, so {limit}", busy=words, limit=_limited(result, full))


def _limited(result: Result, full: Sequence[Role]) -> str:
    saturated = steadiness(result).saturated
    if not full:
        if saturated:
            return tr("requests queue for something else than its GPUs")
        return tr("nothing is at its limit at this rate")
    message = (
        mark("the {roles} GPUs limit it")
        if saturated
        else mark("the {roles} GPUs come first to their limit, and hold at this rate")
    )
    return tr(message, roles=listed(tr(ROLES[role]) for role in full))


def limits_table(group: Group) -> Table | None:
    """For round limits on TTFT and TPOT: which deployment keeps both for more requests, beyond the noise."""
    if not group.others:
        return None
    rows_ms, columns_ms = round_limits(group, "TTFT"), round_limits(group, "TPOT")
    if not rows_ms or not columns_ms:
        return None
    rows = tuple(
        (Cell(f"TTFT ≤ {setting(ttft)} ms"), *(_cell(group, {"ttft": ttft, "tpot": tpot}) for tpot in columns_ms))
        for ttft in rows_ms
    )
    header = ("", *(f"TPOT ≤ {setting(tpot)} ms" for tpot in columns_ms))
    caption = tr(
        "The deployment that keeps both limits for more requests, with the share that it keeps and the next best's; equal where the difference is within the noise."
    )
    return Table(
        title=tr("Which wins for which limits"),
        header=header,
        rows=rows,
        words=frozenset(range(len(header))),
        caption=caption,
    )


def _cell(group: Group, limits: dict[str, float]) -> Cell:
    shares = sorted(((attainment(result, limits), -place) for place, result in enumerate(group.results)), reverse=True)
    (best, place), (second, next_place) = shares[:2]
    texts = joined((percent(round(best, 3)), percent(round(second, 3))))
    if best < 0.005:
        return Cell(tr("none"), "equal")
    winner, runner_up = group.results[-place], group.results[-next_place]
    if not _apart(winner, runner_up, best, second):
        return Cell(tr("equal: {shares}", shares=texts), "equal")
    return Cell(tr("{run}: {shares}", run=winner.name, shares=texts), "better" if winner is not group.baseline else "")


def _apart(one: Result, two: Result, best: float, second: float) -> bool:
    """Two shares differ by more than their sampling noise (two standard errors) and by more than 2 %."""
    variance = sum(
        share * (1 - share) / max(result.metrics.requests, 1) for share, result in ((best, one), (second, two))
    )
    return best - second > max(0.02, 2 * math.sqrt(variance))


def _best_rates(sweep: Sweep) -> list[str]:
    if not sweep.limits:
        return []
    what = joined(f"{name.upper()} ≤ {setting(limit)} ms" for name, limit in sweep.limits.items())
    found = [(series, best_rate(series)) for series in sweep.series]
    words = listed(_up_to(series, rate) for series, rate in found)
    sentence = tr(
        "Within {limits} for {share} of requests, each GPU serves: {rates}.",
        limits=what,
        share=percent(ATTAINMENT),
        rates=words,
    )
    known = sorted(((rate, series.name) for series, rate in found if rate is not None), reverse=True)
    open_ended = any(beyond(series) for series in sweep.series)
    if len(known) > 1 and known[0][0] > known[1][0] * 1.05 and not open_ended:
        more = tr("{run} carries {factor}× as much.", run=known[0][1], factor=number(known[0][0] / known[1][0]))
        return [tr("{sentence} {next}", sentence=sentence, next=more)]
    return [sentence]


def _up_to(series: Series, rate: float | None) -> str:
    if rate is None:
        return tr("{run} less than the lowest rate that was offered", run=series.name)
    message = mark("{run} at least {rate} req/s") if beyond(series) else mark("{run} {rate} req/s")
    return tr(message, run=series.name, rate=number(rate))


def _crossed(measure: Measure, one: Series, two: Series) -> str:
    """Where two deployments change places; only differences beyond the noise count as being ahead."""
    theirs = {rate_per_gpu(result): result for result in two.results}
    pairs = [
        compared(measure, result, theirs[rate]) for result in one.results if (rate := rate_per_gpu(result)) in theirs
    ]
    known = [pair for pair in pairs if pair.known]
    if len(known) < 2:
        return ""
    ahead = [one if pair.winner is pair.baseline else two for pair in known if pair.winner is not None]
    if not ahead:
        return tr("{measure}, no difference to call at any rate", measure=measure.phrase)
    if one in ahead and two in ahead:
        crossings = break_even(one.points(measure.get), two.points(measure.get))
        at = listed(f"{number(rate)}" for rate in crossings[:3])
        if not at:
            return tr("{measure}, now one ahead and now the other", measure=measure.phrase)
        return tr("{measure}, break-even at {rates} req/s per GPU", measure=measure.phrase, rates=at)
    if len(ahead) == len(known):
        return tr("{measure}, {run} ahead at every rate", measure=measure.phrase, run=ahead[0].name)
    return tr(
        "{measure}, {run} ahead at {some} of {all} rates and no difference at the others",
        measure=measure.phrase,
        run=ahead[0].name,
        some=len(ahead),
        all=len(known),
    )


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


def _crossed_lengths(rate: float, one: tuple[str, list[Result]], two: tuple[str, list[Result]]) -> list[str]:
    sentences = []
    for measure in _CROSSED:
        ours, theirs = _by_length(one[1], measure), _by_length(two[1], measure)
        crossings = break_even(ours, theirs)
        if crossings:
            at = listed(tr("{sizes} tokens", sizes=number(length)) for length in crossings[:3])
            sentences.append(
                tr(
                    "Break-even in {measure} at {rate} req/s: {one} and {two} cross at prompts of {lengths}.",
                    measure=measure.phrase,
                    rate=setting(rate),
                    one=one[0],
                    two=two[0],
                    lengths=at,
                )
            )
    return sentences


def _by_length(results: Sequence[Result], measure: Measure) -> list[tuple[float, float]]:
    found = [(float(result.run.manifest.workload.input_tokens or 0), measure.get(result)) for result in results]
    return sorted((x, y) for x, y in found if y is not None)


def rate_table(series: Series) -> Table:
    """Rate to TTFT and TPOT percentiles of one deployment."""
    header = [
        tr("Rate, req/s"),
        tr("per GPU"),
        *(f"{name} p{p}, ms" for name in ("TTFT", "TPOT") for p in (90, 95, 99)),
    ]
    header += [tr("Within limits"), tr("Goodput per GPU"), tr("J / output token"), tr("Failed")]
    rows = []
    for result in series.results:
        metrics = result.metrics
        cells = [setting(result.run.manifest.workload.rate), number(metrics.per_gpu(result.run.manifest.workload.rate))]
        cells += [
            number(metrics.latencies[name].at(percentile), scale=1e3)
            for name in ("TTFT", "TPOT")
            for percentile in (90, 95, 99)
        ]
        cells += [_attained(result), number(GOODPUT.get(result)), number(JOULES.get(result))]
        rows.append((*map(Cell, cells), Cell(str(sum(metrics.failures.values())))))
    return Table(
        title=tr("{run}: over rates", run=series.name), header=tuple(header), rows=tuple(rows), words=frozenset()
    )


def _attained(result: Result) -> str:
    share = result.metrics.attainment
    if share is None:
        return DASH
    draws = of_rate("good", lambda one: 1 / one.metrics.requests)(result)
    if draws is None:
        return percent(share)
    low, high = interval(draws)
    return tr("{share} ({low} to {high} %)", share=percent(share), low=f"{low * 100:.0f}", high=f"{high * 100:.0f}")
