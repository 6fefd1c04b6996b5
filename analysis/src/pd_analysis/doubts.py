"""Why the numbers may be wrong or mean something else: each doubt is a sentence with its remedy, printed before any number."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pd_analysis.energy import Energy, GpuEnergy
from pd_analysis.load import Problem
from pd_analysis.metrics import ENOUGH_FOR_P99
from pd_analysis.results import Group, Result, gpus
from pd_analysis.texts import listed, ms, number, percent, plural, setting

CLOSURE_LIMIT: Final = 0.03
TOKENS_LIMIT: Final = 0.01  # runs that wrote output of lengths further apart than this did not do the same work
COUNTER_LEAST_S: Final = 5.0  # about 50 updates of a board's counter: below, its steps are more than 2 % of the window


class Level(StrEnum):
    """How much a doubt weighs."""

    STOP = "do not decide on this"
    CARE = "read with care"


@dataclass(frozen=True)
class Doubt:
    """One reason to doubt, and what to do about it."""

    level: Level
    sentence: str
    remedy: str


def doubts(group: Group, problems: Sequence[Problem] = ()) -> list[Doubt]:
    """Everything that is doubtful about a group, the heaviest first."""
    found = [
        *(doubt for check in _OF_GROUP for doubt in check(group)),
        *(doubt for check in _OF_RESULT for result in group.results for doubt in check(result)),
        *map(of_problem, problems),
    ]
    return sorted(dict.fromkeys(found), key=lambda doubt: doubt.level is not Level.STOP)


def of_problem(problem: Problem) -> Doubt:
    """A run that was left out is a doubt too: the comparison may have lost its other side."""
    return Doubt(Level.CARE, f"{problem.path}: {problem.sentence}.", "Nothing of it is in the numbers below.")


def _simulated(group: Group) -> Iterable[Doubt]:
    names = [result.name for result in group.results if result.run.simulated]
    if names:
        yield Doubt(
            Level.STOP,
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} SIMULATED: these numbers come from a model of GPUs, not from GPUs.",
            "Use them to see how the report works; measure on the hardware that you would buy before you decide.",
        )


def _schedules(group: Group) -> Iterable[Doubt]:
    hashes = {result.run.manifest.schedule_hash for result in group.results}
    if len(hashes) > 1:
        yield Doubt(
            Level.STOP,
            f"The runs were offered {len(hashes)} different schedules ({listed(sorted(hashes))}), so their difference is not the deployment's alone.",
            "Repeat the load with the same options and --seed; equal schedules have equal hashes.",
        )


def _gpu_counts(group: Group) -> Iterable[Doubt]:
    counts = {result.metrics.gpus for result in group.results} - {None}
    if len(counts) > 1:
        each = listed(f"{result.name} has {gpus(result)}" for result in group.results)
        yield Doubt(
            Level.STOP,
            f"The runs do not use the same number of GPUs: {each}. Latencies at one load then favour the larger one.",
            "Compare the rows per GPU only, or run both on equally many GPUs (two combined replicas against 1P1D).",
        )


def _models(group: Group) -> Iterable[Doubt]:
    models = {result.run.manifest.workload.model for result in group.results} - {""}
    if len(models) > 1:
        yield Doubt(
            Level.STOP, f"The runs serve different models: {listed(sorted(models))}.", "Compare runs of one model."
        )


def _limits(group: Group) -> Iterable[Doubt]:
    limits = {tuple(sorted(result.run.manifest.workload.goodput.items())) for result in group.results}
    if len(limits) > 1:
        yield Doubt(Level.CARE, "The runs have different goodput limits.", "Repeat them with one --goodput.")


def _work(group: Group) -> Iterable[Doubt]:
    written = {result.name: result.metrics.output_tokens for result in group.results}
    known = [tokens for tokens in written.values() if tokens]
    complete = not any(result.metrics.failures for result in group.results)
    if complete and known and max(known) > min(known) * (1 + TOKENS_LIMIT):
        each = listed(f"{name} wrote {tokens:,}" for name, tokens in written.items() if tokens)
        yield Doubt(
            Level.CARE,
            f"The runs did not write equally many output tokens: {each}.",
            "Fix the output's length with --ignore-eos, so that both do the same work.",
        )


def _client(result: Result) -> Iterable[Doubt]:
    client = result.run.manifest.client
    if client is None:
        yield Doubt(
            Level.CARE,
            f"{result.name}: the load generator did not say whether it kept up.",
            "Measure again with this version of pd-loadgen.",
        )
    elif not client.valid:
        lag = ", ".join(f"{name} {number(value)} ms" for name, value in client.dispatch_lag_ms.items())
        yield Doubt(
            Level.STOP,
            f"{result.name} is INVALID: the load generator itself was late (dispatch lag {lag}; limit {setting(client.limit_ms)} ms).",
            client.remedy or "Give it more processor cores, or offer less.",
        )


def _failures(result: Result) -> Iterable[Doubt]:
    failures = result.metrics.failures
    if not failures:
        return
    failed, offered = sum(failures.values()), result.metrics.requests
    kinds = listed(f"{count:,} {kind}" for kind, count in failures.items())
    yield Doubt(
        Level.STOP if failed == offered else Level.CARE,
        f"{result.name}: {failed:,} of {offered:,} requests failed ({kinds}). Percentiles are over the others, and look better for it.",
        "See the table of failures and the engines' logs; a fair comparison has none.",
    )


def _too_few(result: Result) -> Iterable[Doubt]:
    served = result.metrics.successes
    if 0 < served < ENOUGH_FOR_P99:
        yield Doubt(
            Level.CARE,
            f"{result.name}: a p99 of {plural(served, 'request')} is nearly its slowest request; {ENOUGH_FOR_P99} are the least, and 1,000 are steady.",
            "Offer the load for longer (--duration).",
        )


def _tokens(result: Result) -> Iterable[Doubt]:
    metrics = result.metrics
    if metrics.successes and (metrics.output_tokens is None or metrics.prompt_tokens is None):
        yield Doubt(
            Level.CARE,
            f"{result.name}: the server did not report the tokens of every request, so token rates and joules a token are unknown.",
            "Use a server that answers stream_options.include_usage.",
        )


def _gpus_unknown(result: Result) -> Iterable[Doubt]:
    if not result.metrics.gpus:
        yield Doubt(
            Level.CARE,
            f"{result.name}: the number of GPUs is unknown, so nothing of it is given per GPU.",
            "Name them in the file that --deployment reads; pdctl writes it.",
        )


def _power(result: Result) -> Iterable[Doubt]:
    energy = result.energy
    if energy is None:
        yield Doubt(
            Level.CARE,
            f"{result.name}: no power was recorded, so energy is unknown.",
            "Start pd-monitor and give its address to pd-loadgen with --monitor.",
        )
    elif energy.uncovered_s:
        yield Doubt(
            Level.CARE,
            f"{result.name}: power was not recorded for {number(energy.uncovered_s)} s of the measured window, so energy is unknown.",
            "Let the recording begin before the load and end after it; if it ran on another host, set both clocks by NTP.",
        )
    else:
        yield from _boards(result, energy)
        yield from _readings(result.name, energy.serving)


def _boards(result: Result, energy: Energy) -> Iterable[Doubt]:
    serving, expected = len(energy.serving), result.metrics.gpus
    if not serving:
        yield Doubt(
            Level.CARE,
            f"{result.name}: no recorded GPU has a role, so energy is not divided by role.",
            "Tell pd-monitor the roles: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS.",
        )
    elif expected and serving != expected:
        yield Doubt(
            Level.CARE,
            f"{result.name}: power was recorded for {plural(serving, 'GPU')} with a role, but the deployment has {expected}.",
            "Give every GPU of the deployment its role: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS.",
        )
    if energy.window_s < COUNTER_LEAST_S:
        yield Doubt(
            Level.CARE,
            f"{result.name}: the measured window of {number(energy.window_s)} s is short for an energy counter that moves about every 100 ms.",
            f"Measure for {COUNTER_LEAST_S:.0f} s or more (--duration).",
        )


def _readings(name: str, gpus: Sequence[GpuEnergy]) -> Iterable[Doubt]:
    integrated = [f"GPU {gpu.index}" for gpu in gpus if gpu.method == "integral"]
    if integrated:
        yield Doubt(
            Level.CARE,
            f"{name}: {listed(integrated)} had no usable energy counter; the energy is the integral of power.",
            "Compare it only with runs on the same board and by the same method.",
        )
    open_ = [f"GPU {gpu.index} {percent(gpu.closure)}" for gpu in gpus if abs(gpu.closure or 0) > CLOSURE_LIMIT]
    if open_:
        yield Doubt(
            Level.CARE,
            f"{name}: neither power reading agrees with the energy counter ({listed(open_)}; limit {percent(CLOSURE_LIMIT)}).",
            "Trust the counter, and look at the power timeline for holes; a longer window makes the edges matter less.",
        )
    slowed = [
        f"GPU {gpu.index} {reason} in {percent(share)} of samples"
        for gpu in gpus
        for reason, share in gpu.throttled.items()
    ]
    if slowed:
        yield Doubt(
            Level.CARE,
            f"{name}: GPUs ran slower than their clocks allow ({listed(slowed)}).",
            "Check cooling and power limit (nvidia-smi -q -d PERFORMANCE); compare runs with the same limits.",
        )


def _lag(result: Result) -> Iterable[Doubt]:
    """Latency counts from the schedule, so that a client that sends late makes the server look slow."""
    ttft, from_send = (result.metrics.latencies[name].at(99) for name in ("TTFT", "TTFT (from send)"))
    if ttft is not None and from_send is not None and ttft > from_send * 1.1:
        yield Doubt(
            Level.CARE,
            f"{result.name}: TTFT p99 is {ms(ttft)} ms from the schedule but {ms(from_send)} ms from the send; the difference is the client's.",
            "Give the load generator more processor cores, away from the engines'.",
        )


_OF_GROUP: Final[tuple[Callable[[Group], Iterable[Doubt]], ...]] = (
    _simulated,
    _schedules,
    _gpu_counts,
    _models,
    _limits,
    _work,
)
_OF_RESULT: Final[tuple[Callable[[Result], Iterable[Doubt]], ...]] = (
    _client,
    _lag,
    _failures,
    _too_few,
    _tokens,
    _gpus_unknown,
    _power,
)
