"""The verdict and its doubts in sentences."""

import math
from collections.abc import Iterator
from statistics import median
from typing import Final

from pd_analysis.words.formatting import number
from pd_analysis.words.language import mark, ntr, tr
from pd_planner.confidence.draws import Drawn
from pd_planner.confidence.findings import Findings
from pd_planner.confidence.verdict import Outcome, Verdict
from pd_planner.emit.deploy import NODE_GPUS
from pd_planner.emit.measurement import of_roles
from pd_planner.emit.plan_file import shipped_as
from pd_planner.profile.numbers import beside_ms
from pd_planner.profile.trust import Trust
from pd_planner.search.question import Choice, Objective

_FEW_REQUESTS: Final = 1000
_KV_FULL: Final = 0.8
_BEYOND: Final = 1.5  # prompts so much longer than those that a profile was fitted to
_ANSWERS: Final = {
    Objective.GPUS: mark("The fewest GPUs for {rate} requests/s within {limits}: {gpus} as {deployment}, which could carry {carried}; {cost}."),
    Objective.ENERGY: mark("The least energy for {rate} requests/s within {limits}: {gpus} as {deployment}, which could carry {carried}; {cost}."),
    Objective.GOODPUT: mark("The most room above {rate} requests/s within {limits}: {gpus} as {deployment}, which could carry {carried}; {cost}."),
}  # fmt: skip
_HELD_OUT: Final = {
    "capacity": mark("capacity"),
    "ttft_p50": "TTFT p50",
    "tpot_p50": "TPOT p50",
    "joules_per_token": mark("J/token"),
}


def verdict_sentences(found: Findings) -> list[str]:
    """The answer first, then how sure it is."""
    return [_answer(found), *_comparison(found.verdict), *_roles(found)]


def _answer(found: Findings) -> str:
    question, best = found.question, found.best
    fleet, operation = best.choice.fleet, best.choice.operation
    limits, band = question.setting.limits.words, best.band
    carried = tr(
        "{rate} requests/s per GPU ({low} to {high})",
        rate=number(band.middle),
        low=number(band.low),
        high=number(band.high),
    )
    if question.rate is None:
        return tr(
            "The most on {gpus} within {limits}: {deployment}, with {carried}.",
            gpus=gpus(fleet.gpus),
            limits=limits,
            deployment=fleet.label,
            carried=carried,
        )
    return tr(
        _ANSWERS[question.objective],
        rate=number(question.rate),
        limits=limits,
        gpus=gpus(fleet.gpus),
        deployment=fleet.label,
        carried=carried,
        cost=tr(
            "{joules} J per output token, {watts} W",
            joules=number(operation.joules),
            watts=f"{operation.total_watts:,.0f}",
        ),
    )


def _comparison(judged: Verdict) -> Iterator[str]:
    if judged.plain is None or judged.apart is None:
        return
    plain, apart = judged.plain.choice.fleet.label, judged.apart.choice.fleet.label
    count = tr(
        "{apart} comes out ahead of {plain} in {ahead} of {draws} draws, with {ratio} times its {what} in the median",
        apart=apart,
        plain=plain,
        ahead=judged.ahead,
        draws=judged.draws,
        ratio=number(judged.ratio),
        what=_measure(judged.objective),
    )
    if judged.outcome is Outcome.UNCLEAR:
        yield tr("It is unclear whether prefill and decode should be separate: {comparison}.", comparison=count)
    else:
        yield tr("{comparison}.", comparison=count)


def _roles(found: Findings) -> Iterator[str]:
    compared = found.roles
    if compared is None:
        return
    yield tr(
        "ROUTING=adaptive: {adaptive} come out ahead of {fixed} in {ahead} of {draws} draws, with {ratio} times its {what} in the median.",
        adaptive=compared.adaptive.choice.fleet.label,
        fixed=compared.fixed.choice.fleet.label,
        ahead=compared.ahead,
        draws=compared.draws,
        ratio=number(compared.ratio),
        what=_measure(found.question.objective),
    )


def _measure(objective: Objective) -> str:
    return tr("joules per output token") if objective is Objective.ENERGY else tr("capacity per GPU")


def doubts(found: Findings, measurement: str) -> list[str]:
    """The doubts about the answer, the most serious first."""
    return [
        *_of_profile(found),
        *_of_topology(found),
        *_unclear(found, measurement),
        *_untried_roles(found),
        *(tr("Left out: {reason}.", reason=reason) for reason in found.answer.left_out),
        *_of_traffic(found),
        *_of_cpu(found),
        *_of_memory(found),
        *_better_untried(found),
    ]


def _of_profile(found: Findings) -> Iterator[str]:
    profile = found.question.setting.profile
    known = profile.provenance
    if known is None:
        yield tr(
            "The origin of this profile is unknown ({profile}); take its numbers for ±25 %.",
            profile=profile.description,
        )
    elif known.kind == "analytic":
        yield tr(
            "ANALYTIC: computed from the model's shape and the board's data sheet, ±25 %; not measured. Measure one plain "
            "engine and one pair, and make a profile with pd-plan calibrate."
        )
    elif known.kind == "simulated":
        yield tr("The profile was fitted to simulated engines: it says nothing about a GPU.")


def _of_topology(found: Findings) -> Iterator[str]:
    best = found.best.choice
    if best.trust is Trust.UNCALIBRATED and best.adaptive:
        yield tr(
            "UNCALIBRATED TOPOLOGY: no run that the profile was compared with had adaptive roles; ±40 %.",
        )
    elif best.trust is Trust.UNCALIBRATED:
        yield tr(
            "UNCALIBRATED TOPOLOGY: no run that the profile was fitted to had {deployment}'s senders and receivers; ±40 %.",
            deployment=best.fleet.candidate.label,
        )
    if not best.plain and best.fleet.candidate.gpus > NODE_GPUS:
        yield tr(
            "A cell has {gpus} GPUs, more than most hosts ({host}): KV then goes over the network, and the profile was measured on one host.",
            gpus=best.fleet.candidate.gpus,
            host=NODE_GPUS,
        )


def _unclear(found: Findings, measurement: str) -> Iterator[str]:
    if found.verdict.outcome is Outcome.UNCLEAR and measurement:
        yield tr("This measurement would decide it: {command}", command=measurement)


def _untried_roles(found: Findings) -> Iterator[str]:
    compared, objective = found.roles, found.question.objective
    profile = shipped_as(found.question.setting.profile)
    if compared is None or not profile:
        return
    better = compared.ratio < 1 if objective is Objective.ENERGY else compared.ratio > 1
    if better:
        command = of_roles(found.question.setting, compared, objective, profile)
        yield tr("Adaptive roles are ahead in the median; this measurement would try them: {command}", command=command)


def _of_traffic(found: Findings) -> Iterator[str]:
    traffic, known = found.question.setting.traffic, found.question.setting.profile.provenance
    count = len(traffic.load)
    yield from (tr("{note}.", note=str(note).removesuffix(".")) for note in traffic.notes)
    if traffic.recorded and count < _FEW_REQUESTS:
        yield tr(
            "The trace has {count} requests: a p99 rests on {few} of them.",
            count=f"{count:,}",
            few=max(1, count // 100),
        )
    longest = int(traffic.load.prompt.max())
    if known and known.prompt_tokens and longest > _BEYOND * known.prompt_tokens[1]:
        yield tr(
            "Prompts have up to {longest} tokens, and the profile was fitted to {least} to {most}.",
            longest=f"{longest:,}",
            least=f"{known.prompt_tokens[0]:,}",
            most=f"{known.prompt_tokens[1]:,}",
        )
    if traffic.shared and not found.question.setting.prefix_caching:
        yield tr("Prompts of this traffic share prefixes, and prefix caching is off; --prefix-caching plans with it.")


def _of_cpu(found: Findings) -> Iterator[str]:
    """Plain engines whose steps with prompts wait for their launch."""
    setting = found.question.setting
    prompt, launch = float(setting.traffic.load.prompt.mean()), setting.profile.launch
    computing = beside_ms(setting.profile, prompt)
    waiting = launch.ms and prompt > launch.graph_tokens - 1 and computing < median(launch.ms)
    if waiting and any(drawn.choice.plain for drawn in found.drawn):
        yield tr(
            "With prompts of this length plain engines wait for the CPU: it takes {least} to {most} ms to launch a step with a prompt, and the GPU "
            "would need {computing} ms. With another CPU they carry more or less; with twice as many engines on a host, launching took about 10 % longer.",
            least=f"{min(launch.ms):.0f}",
            most=f"{max(launch.ms):.0f}",
            computing=f"{computing:.0f}",
        )


def _of_memory(found: Findings) -> Iterator[str]:
    """A sequence is admitted only if all its tokens fit; vLLM admits more and takes some back, which is not modelled."""
    setting, choice = found.question.setting, found.best.choice
    load, operation = setting.traffic.load, choice.operation
    engines = choice.fleet.cells * choice.fleet.candidate.others
    tokens = float((load.prompt + load.output).mean())
    stay_s = operation.latencies["tpot_p50"] * float(load.output.mean()) / 1e3
    if math.isfinite(stay_s) and operation.rate / engines * stay_s * tokens > _KV_FULL * setting.engine.kv_tokens:
        yield tr(
            "Engines are full of KV at this rate. What vLLM does then (taking sequences out of the batch and computing them again) is not simulated."
        )


def _better_untried(found: Findings) -> Iterator[str]:
    """An uncalibrated deployment that was ranked lower for being one."""
    best = found.best.choice
    untried = [choice for choice in found.answer.choices if choice.trust is Trust.UNCALIBRATED and not choice.refusal]
    better = [choice for choice in untried if _is_better(found, choice, best)]
    if better and best.trust is not Trust.UNCALIBRATED:
        other = max(better, key=lambda choice: choice.fleet.per_gpu)
        yield tr(
            "{deployment} might do better ({rate} requests/s per GPU simulated, {gpus} GPUs), but nothing like it was measured: "
            "UNCALIBRATED TOPOLOGY, ±40 %. --any-topology ranks it as if it had been.",
            deployment=other.fleet.label,
            rate=number(other.fleet.per_gpu),
            gpus=other.fleet.gpus,
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
        return tr("The error of this profile on runs that it was not fitted to is unknown.")
    parts = []
    for name, words in _HELD_OUT.items():
        errors = sorted(error for one in known.held_out.values() if (error := getattr(one, name)) is not None)
        if errors:
            middle, worst = f"{errors[len(errors) // 2]:.0%}", f"{errors[-1]:.0%}"
            parts.append(tr("{metric} {middle} (worst {worst})", metric=tr(words), middle=middle, worst=worst))
    return tr(
        "Held-out error of the profile, median over deployments: {errors}.",
        errors=tr(", ").join(parts),
    )


def band_words(drawn: Drawn | None, choice: Choice) -> str:
    """A capacity with its band, where it was drawn."""
    if drawn is None:
        return number(choice.fleet.per_gpu)
    return f"{number(drawn.band.middle)} ({number(drawn.band.low)}–{number(drawn.band.high)})"


def gpus(count: int) -> str:
    """1 GPU, 8 GPUs."""
    return ntr("{count} GPU", "{count} GPUs", count)
