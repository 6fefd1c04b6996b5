"""Why the numbers may be wrong or mean something else: each doubt is a sentence with its remedy, printed before any number."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis.doubts.answers import unfinished
from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.power import power
from pd_analysis.numbers.evaluation import Group, Result, gpus
from pd_analysis.numbers.metrics import ENOUGH_FOR_P99
from pd_analysis.numbers.parity import parity
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.records.run import Problem
from pd_analysis.words.formatting import joined, listed, ms, number, ratio, setting
from pd_analysis.words.language import ntr, tr

TOKENS_LIMIT: Final = 0.01  # runs that wrote output of lengths further apart than this did not do the same work


@dataclass(frozen=True)
class Case:
    """A doubt, and the results that it is about."""

    doubt: Doubt
    results: tuple[Result, ...]


def doubts(group: Group, problems: Sequence[Problem] = ()) -> list[Doubt]:
    """Everything that is doubtful about a group, the heaviest first."""
    return of_cases(cases(group), problems)


def of_cases(found: Iterable[Case], problems: Iterable[Problem] = ()) -> list[Doubt]:
    """The doubts alone, with those about runs that were left out."""
    return weighed([*(case.doubt for case in found), *map(of_problem, problems)])


def cases(group: Group) -> list[Case]:
    """What is doubtful about comparing a group's runs, and then about each of them."""
    return [
        *(Case(doubt, group.results) for check in _OF_GROUP for doubt in check(group)),
        *(Case(doubt, (result,)) for result in group.results for check in _OF_RESULT for doubt in check(result)),
    ]


def weighed(found: Iterable[Doubt]) -> list[Doubt]:
    """Each doubt once, the heaviest first."""
    return sorted(dict.fromkeys(found), key=lambda doubt: doubt.level is not Level.STOP)


def of_problem(problem: Problem) -> Doubt:
    """A run that was left out is a doubt too: the comparison may have lost its other side."""
    return Doubt(
        Level.CARE,
        tr("{path}: {sentence}.", path=problem.path, sentence=problem.sentence),
        tr("Nothing of it is in the numbers below."),
    )


def _simulated(group: Group) -> Iterable[Doubt]:
    names = [result.name for result in group.results if result.run.simulated]
    if names:
        yield Doubt(
            Level.STOP,
            ntr(
                "{names} is SIMULATED: these numbers come from a model of GPUs, not from GPUs.",
                "{names} are SIMULATED: these numbers come from a model of GPUs, not from GPUs.",
                len(names),
                names=listed(names),
            ),
            tr("Use them to see how the report works; measure on the hardware that you would buy before you decide."),
            tr("SIMULATED: these numbers come from a model of GPUs, not from GPUs"),
        )


def _without_gpus(group: Group) -> Iterable[Doubt]:
    names = [result.name for result in group.results if _on_the_cpu(result)]
    if names:
        yield Doubt(
            Level.STOP,
            tr(
                "{names} ran without GPUs: per GPU means per engine here, and nothing in it says how GPUs would do.",
                names=listed(names),
            ),
            tr("Use them to see how the report works; measure on the hardware that you would buy before you decide."),
            tr("Without GPUs: per GPU means per engine here, and nothing in it says how GPUs would do"),
        )


def _on_the_cpu(result: Result) -> bool:
    deployment = result.run.manifest.deployment
    counted = deployment.gpus is not None and bool(deployment.engines)
    boards = result.run.gpu is not None or any(engine.gpus for engine in deployment.engines)
    return counted and not boards and not result.run.simulated


def _schedules(group: Group) -> Iterable[Doubt]:
    schedules = [{run.manifest.schedule_hash for run in result.runs} for result in group.results]
    hashes = set().union(*schedules)
    if "" in hashes:
        yield Doubt(
            Level.CARE,
            tr("It is not known whether the runs were offered the same schedule."),
            tr("Measure both with pd-loadgen, which writes the schedule's hash."),
            tr("It is not known whether the runs were offered the same schedule"),
        )
    elif any(each != schedules[0] for each in schedules):
        yield Doubt(
            Level.STOP,
            tr(
                "The runs were offered {count} different schedules ({hashes}), so their difference is not the deployment's alone.",
                count=len(hashes),
                hashes=listed(sorted(hashes)),
            ),
            tr("Repeat the load with the same options and --seed; equal schedules have equal hashes."),
            tr("Different schedules, so that the difference is not the deployment's alone"),
        )


def _gpu_counts(group: Group) -> Iterable[Doubt]:
    counts = {result.metrics.gpus for result in group.results} - {None}
    if len(counts) > 1:
        each = listed(tr("{run} has {gpus}", run=result.name, gpus=gpus(result)) for result in group.results)
        yield Doubt(
            Level.STOP,
            tr(
                "The runs do not use the same number of GPUs: {each}. Latencies at one load then favour the larger one.",
                each=each,
            ),
            tr("Compare the rows per GPU only, or run both on equally many GPUs (two combined replicas against 1P1D)."),
            tr("Not the same number of GPUs, which favours the larger deployment"),
        )


def _models(group: Group) -> Iterable[Doubt]:
    models = {result.run.manifest.workload.model for result in group.results} - {""}
    if len(models) > 1:
        yield Doubt(
            Level.STOP,
            tr("The runs serve different models: {models}.", models=listed(sorted(models))),
            tr("Compare runs of one model."),
        )


def _limits(group: Group) -> Iterable[Doubt]:
    limits = {tuple(sorted(result.run.manifest.workload.goodput.items())) for result in group.results}
    if len(limits) > 1:
        yield Doubt(Level.CARE, tr("The runs have different goodput limits."), tr("Repeat them with one --goodput."))


def _work(group: Group) -> Iterable[Doubt]:
    written = {result.name: result.metrics.output_tokens for result in group.results}
    known = [tokens for tokens in written.values() if tokens]
    complete = not any(result.metrics.failures for result in group.results)
    if complete and known and max(known) > min(known) * (1 + TOKENS_LIMIT):
        each = listed(
            tr("{name} wrote {tokens}", name=name, tokens=f"{tokens:,}") for name, tokens in written.items() if tokens
        )
        yield Doubt(
            Level.CARE,
            tr("The runs did not write equally many output tokens: {each}.", each=each),
            tr("Fix the output's length with --ignore-eos, so that both do the same work."),
            tr("Not equally many output tokens"),
        )


def _parity(group: Group) -> Iterable[Doubt]:
    for other in group.others:
        found = parity(group.baseline, other)
        pair = listed((group.baseline.name, other.name))
        if not found.compared and group.baseline.metrics.successes and other.metrics.successes:
            yield Doubt(
                Level.CARE,
                tr(
                    "The outputs of {pair} were not compared, so it is not known that both served the same tokens.",
                    pair=pair,
                ),
                tr(
                    "Offer both the same schedule with a load generator that records the outputs' hashes (pd-loadgen does)."
                ),
                tr("Outputs were not compared, so it is not known that all served the same tokens"),
            )
        elif found.different:
            yield Doubt(
                Level.CARE,
                tr(
                    "{different} of {compared} outputs of {pair} differ, though both were asked at temperature 0.",
                    different=f"{found.different:,}",
                    compared=f"{found.compared:,}",
                    pair=pair,
                ),
                tr(
                    "Batches of other sizes round differently, which changes some; if most differ, or the first tokens do, look for broken KV."
                ),
                tr("Outputs of one request differ between deployments, though asked at temperature 0"),
            )


def _steady(result: Result) -> Iterable[Doubt]:
    found = steadiness(result)
    if found.saturated:
        yield Doubt(
            Level.STOP,
            tr(
                "{run} was saturated: from the first third to the last its median TTFT grew {ttft_drift} and the requests in flight {flight_drift}, so its latencies depend on how long was measured.",
                run=result.name,
                ttft_drift=ratio(found.ttft_drift),
                flight_drift=ratio(found.flight_drift),
            ),
            tr("Offer less (--rate), or give it more GPUs; compare only throughput at this rate."),
            tr("Saturated, so that latencies depend on how long was measured"),
        )
    elif found.settle_s:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: the first {settle_s} s differ from the rest, as a warm-up does.",
                run=result.name,
                settle_s=number(found.settle_s),
            ),
            tr(
                "Leave them out with --cut {settle_s}, or measure with a longer --warmup.",
                settle_s=math.ceil(found.settle_s),
            ),
            tr("The first seconds differ from the rest, as a warm-up does"),
        )


def _client(result: Result) -> Iterable[Doubt]:
    clients = [run.manifest.client for run in result.runs]
    client = next((each for each in clients if each is None or not each.valid), clients[0])
    if client is None:
        yield Doubt(
            Level.CARE,
            tr("{run}: the load generator did not say whether it kept up.", run=result.name),
            tr("Measure again with this version of pd-loadgen."),
            tr("The load generator did not say whether it kept up"),
        )
    elif not client.valid:
        lag = joined(f"{name} {number(value)} ms" for name, value in client.dispatch_lag_ms.items())
        yield Doubt(
            Level.STOP,
            tr(
                "{run} is INVALID: the load generator itself was late (dispatch lag {lag}; limit {limit_ms} ms).",
                run=result.name,
                lag=lag,
                limit_ms=setting(client.limit_ms),
            ),
            tr(
                "Share the load out among processes (--processes), give the load generator processor cores of its own, or offer less."
            ),
            tr("INVALID: the load generator itself was late"),
        )


def _failures(result: Result) -> Iterable[Doubt]:
    failures = result.metrics.failures
    if not failures:
        return
    failed, offered = sum(failures.values()), result.metrics.requests
    kinds = listed(f"{count:,} {kind}" for kind, count in failures.items())
    yield Doubt(
        Level.STOP if failed == offered else Level.CARE,
        tr(
            "{run}: {failed} of {offered} requests failed ({kinds}). Percentiles are over the others, and look better for it.",
            run=result.name,
            failed=f"{failed:,}",
            offered=f"{offered:,}",
            kinds=kinds,
        ),
        tr("See the table of failures and the engines' logs; a fair comparison has none."),
    )


def _too_few(result: Result) -> Iterable[Doubt]:
    served = result.metrics.successes
    if 0 < served < ENOUGH_FOR_P99:
        yield Doubt(
            Level.CARE,
            ntr(
                "{run}: a p99 of {count} request is nearly its slowest request; {least} are the least, and 1,000 are steady.",
                "{run}: a p99 of {count} requests is nearly its slowest request; {least} are the least, and 1,000 are steady.",
                served,
                run=result.name,
                least=ENOUGH_FOR_P99,
            ),
            tr("Offer the load for longer (--duration)."),
            tr("A p99 of fewer than {least} requests is nearly the slowest of them", least=ENOUGH_FOR_P99),
        )


def _tokens(result: Result) -> Iterable[Doubt]:
    metrics = result.metrics
    if metrics.successes and (metrics.output_tokens is None or metrics.prompt_tokens is None):
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: the server did not report the tokens of every request, so token rates and joules a token are unknown.",
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
            tr("Name them in the file that --deployment reads; pdctl writes it."),
            tr("The number of GPUs is unknown"),
        )


def _lag(result: Result) -> Iterable[Doubt]:
    """Latency counts from the schedule, so that a client that sends late makes the server look slow."""
    ttft, from_send = (result.metrics.latencies[name].at(99) for name in ("TTFT", "TTFT (from send)"))
    if ttft is not None and from_send is not None and ttft > from_send * 1.1:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: TTFT p99 is {ttft} ms from the schedule but {from_send} ms from the send; the difference is the client's.",
                run=result.name,
                ttft=ms(ttft),
                from_send=ms(from_send),
            ),
            tr("Give the load generator more processor cores, away from the engines'."),
            tr("TTFT p99 counted from the schedule is longer than from the send; the difference is the client's"),
        )


_OF_GROUP: Final[tuple[Callable[[Group], Iterable[Doubt]], ...]] = (
    _simulated,
    _without_gpus,
    _schedules,
    _gpu_counts,
    _models,
    _limits,
    _work,
    _parity,
)
_OF_RESULT: Final[tuple[Callable[[Result], Iterable[Doubt]], ...]] = (
    _client,
    _lag,
    _steady,
    _failures,
    _too_few,
    _tokens,
    _gpus_unknown,
    power,
    unfinished,
)
