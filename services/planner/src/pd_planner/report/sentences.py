"""The verdict and its doubts in sentences."""

import math
from collections.abc import Iterator
from statistics import median
from typing import Final

from pd_analysis.words.formatting import number
from pd_analysis.words.language import mark, ntr, told, tr
from pd_contracts.names import Connector
from pd_contracts.vllm_releases import LAST_WITH_P2P_NCCL, full
from pd_planner.confidence.draws import Drawn
from pd_planner.confidence.findings import Findings
from pd_planner.confidence.verdict import Comparison, Measure, Outcome, compared
from pd_planner.emit.deploy import NODE_GPUS
from pd_planner.emit.measurement import of_roles
from pd_planner.emit.plan_file import shipped_as
from pd_planner.profile.numbers import beside_ms
from pd_planner.profile.trust import Trust
from pd_planner.search.question import Choice, Objective, believed, rank

_FEW_REQUESTS: Final = 1000
_STAYS: Final = 4.0  # times as long as a request stays, a load should last
_KV_FULL: Final = 0.8
_ONE_PERCENT: Final = 0.01
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
    """The answer first, then how sure it is, and why what looks better in most draws is not the answer."""
    return [_answer(found), *_comparison(found), *_roles(found), *_why_not(found)]


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
    cost = tr(
        "{joules} J per output token, {watts} W",
        joules=number(operation.joules),
        watts=f"{operation.total_watts:,.0f}",
    )
    if question.rate is not None:
        return tr(
            _ANSWERS[question.objective],
            rate=number(question.rate),
            limits=limits,
            gpus=_of_budget(found),
            deployment=fleet.label,
            carried=carried,
            cost=cost,
        )
    if question.objective is Objective.ENERGY:
        return tr(
            "The least energy at {rate} requests/s per GPU within {limits}: {gpus} as {deployment}, which could carry {carried}; {cost}.",
            rate=number(operation.rate / fleet.gpus),
            limits=limits,
            gpus=_of_budget(found),
            deployment=fleet.label,
            carried=carried,
            cost=cost,
        )
    return tr(
        "The highest capacity on {gpus} within {limits}: {deployment}, with {carried}.",
        gpus=_of_budget(found),
        limits=limits,
        deployment=fleet.label,
        carried=carried,
    )


def _of_budget(found: Findings) -> str:
    """How many GPUs the answer has; of how many, if the question is what so many can do at most."""
    own, budget = found.best.choice.fleet.gpus, found.question.gpus
    if budget is None or budget == own or found.question.objective is not Objective.GOODPUT:
        return gpus(own)
    return tr("{own} of {budget} GPUs", own=f"{own:,}", budget=f"{budget:,}")


def _comparison(found: Findings) -> Iterator[str]:
    judged = found.verdict
    if judged.compared is None:
        return
    counted = _counted(judged.compared)
    if judged.outcome is Outcome.UNCLEAR:
        yield tr("It is unclear whether prefill and decode should be separate: {comparison}.", comparison=counted)
    else:
        yield tr("{comparison}.", comparison=counted)


def _roles(found: Findings) -> Iterator[str]:
    if found.roles is not None:
        yield tr("ROUTING=adaptive: {comparison}.", comparison=_counted(found.roles))


_COUNTED: Final = {
    Measure.CAPACITY: mark("{one} came out ahead of {other} in {ahead} of {draws} draws, with {ratio} times as many requests/s in all in the median"),
    Measure.PER_GPU: mark("{one} came out ahead of {other} in {ahead} of {draws} draws, with {ratio} times as many requests/s per GPU in the median"),
    Measure.ENERGY: mark("{one} came out ahead of {other} in {ahead} of {draws} draws, with {ratio} times as much energy per output token in the median"),
    Measure.GPUS: mark("{one} needed fewer GPUs than {other} in {ahead} of {draws} draws, as many in {equal} and more in {behind}"),
}  # fmt: skip


def _counted(compared: Comparison) -> str:
    return tr(
        _COUNTED[compared.measure],
        one=compared.one.choice.fleet.label,
        other=compared.other.choice.fleet.label,
        ahead=compared.ahead,
        equal=compared.equal,
        behind=compared.behind,
        draws=compared.draws,
        ratio=number(compared.ratio),
    )


def _overlooked(found: Findings) -> list[Comparison]:
    """What is better than the answer in most draws, of the deployments that the verdict names."""
    pairs = filter(None, (found.verdict.compared, found.roles))
    named = {id(drawn): drawn for pair in pairs for drawn in (pair.one, pair.other)}
    rivals = (compared(drawn, found.best, found.question) for drawn in named.values() if drawn is not found.best)
    return [pair for pair in rivals if pair.better]


def _why_not(found: Findings) -> Iterator[str]:
    best, rivals = found.best.choice, _overlooked(found)
    untried = [pair for pair in rivals if _is_for_trust(found, pair)]
    if untried:
        yield tr(
            "The answer is not {deployments}, because nothing like that was measured: it is ranked by the lower end of its band (±40%), unless "
            "--any-topology is given.",
            deployments=tr(" or ").join(pair.one.choice.fleet.label for pair in untried),
        )
    for pair in rivals:
        rival = pair.one.choice
        if rival.refusal:
            yield tr("The answer is not {deployment} ({reason}).", deployment=rival.fleet.label, reason=rival.refusal)
        elif pair not in untried:
            yield tr(
                "The answer is not {deployment}, because in the median that takes {its} and {its_joules} J per output token, instead of {gpus} and "
                "{joules} J for {best}.",
                deployment=rival.fleet.label,
                its=gpus(rival.fleet.gpus),
                its_joules=number(rival.operation.joules),
                best=best.fleet.label,
                gpus=gpus(best.fleet.gpus),
                joules=number(best.operation.joules),
            )


def _is_for_trust(found: Findings, pair: Comparison) -> bool:
    """Whether a deployment that is better in most draws is not the answer because it is untried."""
    rival, best = pair.one.choice, found.best.choice
    if rival.refusal or believed(found.question, rival) == 1:
        return False
    return pair.measure is not Measure.GPUS or rank(found.question, rival) < rank(found.question, best)


def doubts(found: Findings, measurement: str) -> list[str]:
    """The doubts about the answer, the most serious first."""
    return [
        *_of_profile(found),
        *_of_topology(found),
        *_tight(found),
        *_unclear(found, measurement),
        *_untried_roles(found),
        *(tr("Left out: {reason}.", reason=reason) for reason in found.answer.left_out),
        *_of_traffic(found),
        *_of_cpu(found),
        *_of_memory(found),
        *_of_windows(found),
        *_better_untried(found),
    ]


def _of_profile(found: Findings) -> Iterator[str]:
    profile = found.question.setting.profile
    known = profile.provenance
    if known is None:
        yield tr(
            "The origin of this profile is unknown ({profile}); take its numbers for ±25%.",
            profile=profile.description,
        )
    elif known.kind == "analytic":
        yield tr(
            "ANALYTIC: computed from the model's shape and the board's data sheet, ±25%; not measured. Measure one plain "
            "engine and one pair, and make a profile with pd-plan calibrate."
        )
    elif known.kind == "simulated":
        yield tr("The profile was fitted to simulated engines: it says nothing about a GPU.")


def _of_topology(found: Findings) -> Iterator[str]:
    best = found.best.choice
    if best.trust is Trust.UNCALIBRATED and best.adaptive:
        yield tr(
            "UNCALIBRATED TOPOLOGY: no run that the profile was compared with had adaptive roles; ±40%.",
        )
    elif best.trust is Trust.UNCALIBRATED:
        yield tr(
            "UNCALIBRATED TOPOLOGY: no run that the profile was fitted to had {deployment}'s senders and receivers; ±40%.",
            deployment=best.fleet.candidate.label,
        )
    if best.fleet.candidate.connector is Connector.P2P_NCCL:
        yield tr("P2P NCCL needs vLLM {version}, the last release that has it.", version=full(LAST_WITH_P2P_NCCL))
    if not best.plain and best.fleet.candidate.gpus > NODE_GPUS:
        yield tr(
            "A cell has {gpus} GPUs, more than most hosts ({host}): KV then goes over the network, and the profile was measured on one host.",
            gpus=best.fleet.candidate.gpus,
            host=NODE_GPUS,
        )


def _tight(found: Findings) -> Iterator[str]:
    """Draws in which the answer would not carry the rate."""
    rate, best = found.question.rate, found.best
    if rate is None:
        return
    short = sum(per_gpu * best.choice.fleet.gpus < rate for per_gpu in best.per_gpu)
    if short:
        yield tr(
            "In {short} of {draws} draws {rate} requests/s are too many for {deployment}; a larger --headroom leaves more room.",
            short=short,
            draws=len(best.per_gpu),
            deployment=best.choice.fleet.label,
            rate=number(rate),
        )


def _unclear(found: Findings, measurement: str) -> Iterator[str]:
    wanted = found.verdict.outcome is Outcome.UNCLEAR or any(
        pair.one is found.verdict.apart for pair in _overlooked(found)
    )
    if wanted and measurement:
        yield tr("This measurement would decide it: {command}", command=measurement)


def _untried_roles(found: Findings) -> Iterator[str]:
    pair, profile = found.roles, shipped_as(found.question.setting.profile)
    if pair is not None and profile and pair.better:
        command = of_roles(found.question.setting, pair, profile)
        yield tr("Adaptive roles are ahead in most draws; this measurement would try them: {command}", command=command)


def _of_traffic(found: Findings) -> Iterator[str]:
    traffic, known = found.question.setting.traffic, found.question.setting.profile.provenance
    count = len(traffic.load)
    yield from (tr("{note}.", note=told(note).removesuffix(".")) for note in traffic.notes)
    if traffic.recorded and count < _FEW_REQUESTS:
        yield tr(
            "The trace has {count} requests: a p99 rests on {few} of them.",
            count=f"{count:,}",
            few=max(1, count // 100),
        )
    yield from _of_a_burst(found)
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


def _of_a_burst(found: Findings) -> Iterator[str]:
    """A trace so short that at the rate that is found all of it is there at once: no longer load was simulated."""
    traffic, best = found.question.setting.traffic, found.best
    candidate, latencies = best.simulated, best.choice.operation.latencies
    rate = best.band.middle * candidate.gpus
    if not traffic.recorded or not rate:
        return
    lasts_s, gaps = len(traffic.load) / rate, float(traffic.load.output.mean()) - 1
    stays_s = (latencies["ttft_p50"] + (gaps * latencies["tpot_p50"] if gaps else 0.0)) / 1e3
    if lasts_s < _STAYS * stays_s:
        yield tr(
            "The trace is too short to show what {deployment} carries for long: replayed at {rate} requests/s, all {count} requests come within {lasts} s, "
            "and one stays {stays} s. Take what it carries as a burst that it survives, and plan with a longer trace.",
            deployment=candidate.label,
            rate=number(rate),
            count=f"{len(traffic.load):,}",
            lasts=number(lasts_s),
            stays=number(stays_s),
        )


def _of_cpu(found: Findings) -> Iterator[str]:
    """Plain engines whose steps with prompts wait for their launch."""
    setting = found.question.setting
    prompt, launch = float(setting.traffic.load.prompt.mean()), setting.profile.launch
    computing = beside_ms(setting.profile, prompt)
    waiting = launch.ms and prompt > launch.graph_tokens - 1 and computing < median(launch.ms)
    if waiting and any(drawn.choice.plain for drawn in found.drawn):
        yield tr(
            "With prompts of this length plain engines wait for the CPU: it takes {least} to {most} ms to launch a step with a prompt, while the "
            "prompt adds {computing} ms to it on the GPU. With another CPU they carry more or less; with twice as many engines on a host, launching took about 10% longer.",
            least=f"{min(launch.ms):.0f}",
            most=f"{max(launch.ms):.0f}",
            computing=f"{computing:.0f}" if computing >= 1 else tr("less than 1"),
        )


def _of_memory(found: Findings) -> Iterator[str]:
    """Deployments whose engines run out of KV room at this rate: the answer depends on that room."""
    setting, choice = found.question.setting, found.best.choice
    room = f"{setting.engine.kv_tokens:,}"
    shares = [(drawn.choice.operation.preempted, drawn.choice.fleet.label) for drawn in found.drawn]
    preempting = [
        tr("{share} of requests with {deployment}", share=_share(share), deployment=label)
        for share, label in shares
        if share > 0
    ]
    if preempting:
        yield tr(
            "At times the KV room of an engine, {room} tokens, is full. vLLM then preempts the requests that it admitted last and computes them again: "
            "{shares}. So the answer depends on that room; --kv-tokens sets another.",
            room=room,
            shares=tr(", ").join(preempting),
        )
        return
    load, operation = setting.traffic.load, choice.operation
    engines = choice.fleet.cells * choice.fleet.candidate.others
    tokens = float((load.prompt + load.output).mean())
    stay_s = operation.latencies["tpot_p50"] * float(load.output.mean()) / 1e3
    if math.isfinite(stay_s) and operation.rate / engines * stay_s * tokens > _KV_FULL * setting.engine.kv_tokens:
        yield tr(
            "The KV room of an engine, {room} tokens, is nearly full at this rate. So the answer depends on it; --kv-tokens sets another.",
            room=room,
        )


def _of_windows(found: Findings) -> Iterator[str]:
    """A model whose layers forget, where requests are long enough for that."""
    setting = found.question.setting
    memory, load = setting.profile.memory, setting.traffic.load
    longest = int((load.prompt + load.output).max())
    if memory.window_share and longest > memory.window_tokens:
        yield tr(
            "{share} of this model's layers look back on {window} tokens only (a sliding window), and here they count as full attention. Requests have up "
            "to {longest} tokens: they may take less time than is said here, and an engine may have room for more of them.",
            share=_share(memory.window_share),
            window=f"{memory.window_tokens:,}",
            longest=f"{longest:,}",
        )


def _share(share: float) -> str:
    """12%; below 1%: 0.3%."""
    return f"{share:.0%}" if share >= _ONE_PERCENT else f"{max(share, 0.001):.1%}"


def _better_untried(found: Findings) -> Iterator[str]:
    """An uncalibrated deployment that was ranked lower for being one, unless the verdict says so of it."""
    best, question = found.best.choice, found.question
    if best.trust is Trust.UNCALIBRATED or question.any_topology:
        return
    told = [pair.one.choice for pair in _overlooked(found)]
    untried = [choice for choice in found.answer.choices if choice.trust is Trust.UNCALIBRATED and not choice.refusal]
    better = [choice for choice in untried if choice not in told and _is_better(found, choice)]
    if better:
        other = min(better, key=lambda choice: rank(question, choice))
        drawn = found.drawn_of(other)
        yield tr(
            "{deployment} might do better ({rate} requests/s per GPU simulated, {gpus} GPUs), but nothing like it was measured: "
            "UNCALIBRATED TOPOLOGY, ±40%. --any-topology ranks it as if it had been.",
            deployment=other.fleet.label,
            rate=number(drawn.band.middle if drawn else other.fleet.per_gpu),
            gpus=other.fleet.gpus,
        )


def _is_better(found: Findings, choice: Choice) -> bool:
    """Than the answer: in most draws, or without draws if there are none."""
    drawn = found.drawn_of(choice)
    if drawn is not None:
        return compared(drawn, found.best, found.question).better
    return rank(found.question, choice)[1] < rank(found.question, found.best.choice)[1]


def held_out_words(found: Findings) -> str:
    """How well the profile was held out."""
    known = found.question.setting.profile.provenance
    if known is None or not known.held_out:
        return tr("The error of this profile on runs that it was not fitted to is unknown.")
    parts = []
    for name, words in _HELD_OUT.items():
        errors = sorted(error for one in known.held_out.values() if (error := getattr(one, name)) is not None)
        if errors:
            middle, worst = f"{median(errors):.0%}", f"{errors[-1]:.0%}"
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
