"""The verdict and its doubts in sentences."""

import math
from collections.abc import Iterator
from typing import Final

from pd_analysis.words.formatting import number
from pd_planner.confidence.draws import Drawn
from pd_planner.confidence.findings import Findings
from pd_planner.confidence.verdict import Outcome, Verdict
from pd_planner.emit.deploy import NODE_GPUS
from pd_planner.profile.trust import Trust
from pd_planner.search.plan import Choice, Objective

_FEW_REQUESTS: Final = 1000
_KV_FULL: Final = 0.8
_BEYOND: Final = 1.5  # prompts so much longer than those that a profile was fitted to
STAMP: Final = "SIMULATED"


def verdict_sentences(found: Findings) -> list[str]:
    """The answer first, then how sure it is."""
    return [_answer(found), *_comparison(found.verdict)]


def _answer(found: Findings) -> str:
    question, best = found.question, found.best
    fleet, operation = best.choice.fleet, best.choice.operation
    limits = question.setting.limits.words
    band = best.band
    carried = f"{number(band.middle)} requests/s per GPU ({number(band.low)} to {number(band.high)})"
    if question.rate is None:
        return f"The most on {gpus(fleet.gpus)} within {limits}: {fleet.label}, with {carried}."
    wanted = {
        Objective.GPUS: f"The fewest GPUs for {number(question.rate)} requests/s",
        Objective.ENERGY: f"The least energy for {number(question.rate)} requests/s",
        Objective.GOODPUT: f"The most room above {number(question.rate)} requests/s",
    }[question.objective]
    cost = f"{number(operation.joules)} J per output token, {operation.total_watts:,.0f} W"
    return f"{wanted} within {limits}: {gpus(fleet.gpus)} as {fleet.label}, which could carry {carried}; {cost}."


def _comparison(judged: Verdict) -> Iterator[str]:
    if judged.plain is None or judged.apart is None:
        return
    plain, apart = judged.plain.choice.fleet.label, judged.apart.choice.fleet.label
    what = "joules per output token" if judged.objective is Objective.ENERGY else "capacity per GPU"
    count = f"{apart} comes out ahead of {plain} in {judged.ahead} of {judged.draws} draws"
    ratio = f"{number(judged.ratio)} times its {what} in the median"
    if judged.outcome is Outcome.UNCLEAR:
        yield f"It is unclear whether prefill and decode should be separate: {count}, with {ratio}."
    else:
        yield f"{count}, with {ratio}."


def doubts(found: Findings, measurement: str) -> list[str]:
    """What the answer may be wrong about, the worst first."""
    return [
        *_of_profile(found),
        *_of_topology(found),
        *_unclear(found, measurement),
        *([f"Left out: {found.answer.left_out}."] if found.answer.left_out else []),
        *_of_traffic(found),
        *_of_memory(found),
        *_better_untried(found),
    ]


def _of_profile(found: Findings) -> Iterator[str]:
    profile = found.question.setting.profile
    known = profile.provenance
    if known is None:
        yield f"The origin of this profile is unknown ({profile.description}); take its numbers for ±25 %."
    elif known.kind == "analytic":
        yield (
            "ANALYTIC: computed from the model's shape and the board's data sheet, ±25 %; not measured. Measure one plain "
            "engine and one pair, and make a profile with pd-plan calibrate."
        )
    elif known.kind == "simulated":
        yield "The profile was fitted to simulated engines: it tells nothing about a GPU."


def _of_topology(found: Findings) -> Iterator[str]:
    best = found.best.choice
    if best.trust is Trust.UNCALIBRATED:
        yield f"UNCALIBRATED TOPOLOGY: no run that the profile was fitted to had {best.fleet.candidate.label}'s senders and receivers; ±40 %."
    if not best.plain and best.fleet.candidate.gpus > NODE_GPUS:
        yield f"A cell has {best.fleet.candidate.gpus} GPUs, more than most hosts ({NODE_GPUS}): KV then goes over the network, and the profile was measured on one host."


def _unclear(found: Findings, measurement: str) -> Iterator[str]:
    if found.verdict.outcome is Outcome.UNCLEAR and measurement:
        yield f"This measurement would decide it: {measurement}"


def _of_traffic(found: Findings) -> Iterator[str]:
    traffic, known = found.question.setting.traffic, found.question.setting.profile.provenance
    count = len(traffic.load)
    yield from (f"{note.removesuffix('.')}." for note in traffic.notes)
    if traffic.recorded and count < _FEW_REQUESTS:
        yield f"The trace has {count:,} requests: a p99 rests on {max(1, count // 100)} of them."
    longest = int(traffic.load.prompt.max())
    if known and known.prompt_tokens and longest > _BEYOND * known.prompt_tokens[1]:
        yield f"Prompts have up to {longest:,} tokens, and the profile was fitted to {known.prompt_tokens[0]:,} to {known.prompt_tokens[1]:,}."
    if traffic.shared and not found.question.setting.prefix_caching:
        yield "Prompts of this traffic share prefixes, and prefix caching is off; --prefix-caching plans with it."


def _of_memory(found: Findings) -> Iterator[str]:
    """A sequence is admitted only if all its tokens fit; vLLM admits more and takes some back, which is not modelled."""
    setting, choice = found.question.setting, found.best.choice
    load, operation = setting.traffic.load, choice.operation
    engines = choice.fleet.cells * choice.fleet.candidate.others
    tokens = float((load.prompt + load.output).mean())
    stay_s = operation.latencies["tpot_p50"] * float(load.output.mean()) / 1e3
    if math.isfinite(stay_s) and operation.rate / engines * stay_s * tokens > _KV_FULL * setting.engine.kv_tokens:
        yield "Engines are full of KV at this rate. What vLLM does then (taking sequences out of the batch and computing them again) is not simulated."


def _better_untried(found: Findings) -> Iterator[str]:
    """An uncalibrated deployment that was ranked lower for being one."""
    best = found.best.choice
    untried = [choice for choice in found.answer.choices if choice.trust is Trust.UNCALIBRATED and not choice.refusal]
    better = [choice for choice in untried if _is_better(found, choice, best)]
    if better and best.trust is not Trust.UNCALIBRATED:
        other = max(better, key=lambda choice: choice.fleet.per_gpu)
        yield (
            f"{other.fleet.label} might do better ({number(other.fleet.per_gpu)} requests/s per GPU simulated, {other.fleet.gpus} GPUs), but nothing "
            "like it was measured: UNCALIBRATED TOPOLOGY, ±40 %. --any-topology ranks it as if it had been."
        )


def _is_better(found: Findings, choice: Choice, best: Choice) -> bool:
    if found.question.objective is Objective.ENERGY:
        return choice.operation.joules < best.operation.joules
    if found.question.objective is Objective.GPUS:
        return choice.fleet.gpus < best.fleet.gpus
    return choice.fleet.capacity > best.fleet.capacity


def held_out_words(found: Findings) -> str:
    """How well the profile was held out."""
    known = found.question.setting.profile.provenance
    if known is None or not known.held_out:
        return "The error of this profile on runs that it was not fitted to is unknown."
    parts = []
    for name, words in (
        ("capacity", "capacity"),
        ("ttft_p50", "TTFT p50"),
        ("tpot_p50", "TPOT p50"),
        ("joules_per_token", "J/token"),
    ):
        errors = sorted(error for one in known.held_out.values() if (error := getattr(one, name)) is not None)
        if errors:
            parts.append(f"{words} {errors[len(errors) // 2]:.0%} (worst {errors[-1]:.0%})")
    return f"Held-out error of the profile, median over deployments: {', '.join(parts)}."


def band_words(drawn: Drawn | None, choice: Choice) -> str:
    """A capacity with its band, where it was drawn."""
    if drawn is None:
        return number(choice.fleet.per_gpu)
    return f"{number(drawn.band.middle)} ({number(drawn.band.low)}–{number(drawn.band.high)})"


def gpus(count: int) -> str:
    """1 GPU, 8 GPUs."""
    return f"{count:,} GPU{'s' * (count != 1)}"
