"""Why a comparison may be unfair: other loads, other schedules, other numbers of GPUs, other models, other work."""

from collections.abc import Iterable
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers.evaluation import Group, Result, gpus
from pd_analysis.numbers.load import words
from pd_analysis.numbers.parity import TOKENS_LIMIT, parity, prompt_lengths, prompts_apart, timetables_apart
from pd_analysis.words.formatting import clauses, listed, number
from pd_analysis.words.language import ntr, tr


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
            tr(
                "Use them to see how the report works; before you decide, measure on the hardware that you intend to buy."
            ),
            tr("SIMULATED: these numbers come from a model of GPUs, not from GPUs"),
        )


def _without_gpus(group: Group) -> Iterable[Doubt]:
    names = [result.name for result in group.results if _on_the_cpu(result)]
    if names:
        yield Doubt(
            Level.STOP,
            tr(
                "{names} ran without GPUs: “per GPU” means per engine here, and no number here tells how GPUs would perform.",
                names=listed(names),
            ),
            tr(
                "Use them to see how the report works; before you decide, measure on the hardware that you intend to buy."
            ),
            tr("Without GPUs: “per GPU” means per engine here, and no number here tells how GPUs would perform"),
        )


def _on_the_cpu(result: Result) -> bool:
    deployment = result.run.manifest.deployment
    counted = deployment.gpus is not None and bool(deployment.engines)
    boards = result.run.gpu is not None or any(engine.gpus for engine in deployment.engines)
    return counted and not boards and not result.run.simulated


def _loads(group: Group) -> Iterable[Doubt]:
    """Different loads meet in one group only if the user named exactly these runs."""
    if len({result.load for result in group.results}) > 1:
        each = (
            tr("{run} was offered {load}", run=result.name, load=words(result.run.manifest.workload))
            for result in group.results
        )
        yield Doubt(
            Level.STOP,
            tr("The runs were not offered the same load: {each}.", each=clauses(each)),
            tr(
                "Compare runs of one load; several loads of one deployment are a sweep (pd-analysis report on their folder)."
            ),
            tr("The runs were not offered the same load"),
        )


def _prompts(group: Group) -> Iterable[Doubt]:
    if prompts_apart(group.results):
        lengths = prompt_lengths(group.results)
        each = listed(tr("{run} {tokens}", run=name, tokens=number(tokens)) for name, tokens in lengths.items())
        yield Doubt(
            Level.STOP,
            tr("The prompts differ in length; mean tokens per prompt: {each}.", each=each),
            tr("Offer the same prompts to both: the same data set, lengths and seed."),
            tr("The prompts differ in length"),
        )


def _schedules(group: Group) -> Iterable[Doubt]:
    if not group.others:
        return
    schedules = [{run.manifest.schedule_hash for run in result.runs} for result in group.results]
    hashes = set().union(*schedules)
    if "" in hashes:
        yield Doubt(
            Level.CARE,
            tr("It is not known whether the runs were offered the same schedule."),
            tr("Measure both with pd-loadgen, which writes the schedule's hash."),
            tr("It is not known whether the runs were offered the same schedule"),
        )
    elif any(timetables_apart(group.baseline.runs, other.runs) for other in group.others):
        yield Doubt(
            Level.STOP,
            tr("The runs name one schedule, but their requests were due at different times."),
            tr("The records of one of them were changed or damaged: measure again."),
        )
    elif any(not each & schedules[0] for each in schedules):
        yield Doubt(
            Level.STOP,
            tr(
                "The runs were offered {count} different schedules ({hashes}), so the difference between them is not due to the deployment alone.",
                count=len(hashes),
                hashes=listed(sorted(hashes)),
            ),
            tr("Repeat the load with the same options and --seed; equal schedules have equal hashes."),
            tr("Different schedules, so the difference is not due to the deployment alone"),
        )
    elif any(each != schedules[0] for each in schedules):
        yield Doubt(
            Level.CARE,
            tr(
                "Some deployments were measured with more seeds than others, so part of the difference may come from the schedules."
            ),
            tr("Repeat each load with the same seeds on every deployment."),
            tr("Some deployments were measured with more seeds than others"),
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
            tr(
                "Compare the rows per GPU only, or run both on the same number of GPUs (two combined replicas against 1P1D)."
            ),
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
            tr("The runs wrote different numbers of output tokens: {each}.", each=each),
            tr("Fix the output's length with --ignore-eos, so that both do the same work."),
            tr("Different numbers of output tokens"),
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


OF_GROUP: Final = (
    _simulated,
    _without_gpus,
    _loads,
    _schedules,
    _prompts,
    _gpu_counts,
    _models,
    _limits,
    _work,
    _parity,
)
