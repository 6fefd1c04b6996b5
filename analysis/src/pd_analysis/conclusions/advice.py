"""Findings on one load besides the verdict: what limits each deployment, and which deployment meets which limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis.numbers.comparison import bar
from pd_analysis.numbers.evaluation import ROLES, Group, Result
from pd_analysis.numbers.slo_attainment import attainment, round_limits
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.numbers.sweep import ATTAINMENT
from pd_analysis.records.columns import STAGES
from pd_analysis.tables.table import Cell, Table
from pd_analysis.words.formatting import clauses, joined, listed, number, percent, setting
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

_ALIKE: Final = 0.995  # if even the second deployment meets the limits for this share of requests, both meet them
BUSY: Final = 0.9  # share of the time with a kernel running, from which a GPU is called busy
_SPENT: Final = {
    "queue": mark("{share} waiting in the proxy"),
    "prefill": mark("{share} prefill"),
    "kv_and_first_decode": mark("{share} the KV hand-off and first decode step"),
}


@dataclass(frozen=True)
class Conclusion:
    """Sentences, and the table of which deployment meets which limits; the table is None if no latency was measured."""

    sentences: tuple[str, ...]
    limits: Table | None


def of_group(group: Group) -> Conclusion:
    return Conclusion(
        sentences=tuple(sentence for result in group.results if (sentence := bottleneck(result))),
        limits=limits_table(group),
    )


def bottleneck(result: Result) -> str:
    """What limits a deployment at this rate: where the time to first token goes, and which GPUs are busy."""
    if not result.metrics.successes:
        return ""
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
            "the mean time to the first token, at the proxy, is {total} ms, which plain serving does not divide into prefill and decode",
            total=number(total),
        )
    shares = [
        tr(message, share=percent(early[stage] / total))
        for stage, message in _SPENT.items()
        if early[stage] / total >= 0.01
    ]
    return tr(
        "the mean time to the first token, at the proxy, is {total} ms: {shares}",
        total=number(total),
        shares=listed(shares),
    )


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
            return tr("requests queue for something other than its GPUs")
        return tr("nothing is at its limit at this rate")
    message = (
        mark("the {roles} GPUs limit it")
        if saturated
        else mark("the {roles} GPUs will limit it first, and keep up at this rate")
    )
    return tr(message, roles=listed(tr(ROLES[role]) for role in full))


def limits_table(group: Group) -> Table | None:
    """For round limits on TTFT and TPOT: which deployment meets both for more requests, beyond the noise."""
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
        "Each cell names the deployment that meets both limits for more requests, with its share and that of the next best. None: no deployment meets them for {share} of requests. Unclear: the difference is within the noise, or the runs must not be compared.",
        share=percent(ATTAINMENT),
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
    if best < ATTAINMENT:
        return Cell(tr("none: {shares}", shares=texts), "equal")
    winner, runner_up = group.results[-place], group.results[-next_place]
    if second >= _ALIKE:
        return Cell(tr("equal: {shares}", shares=texts), "equal")
    if bar(winner, runner_up) is not None or not _apart(winner, runner_up, best, second):
        return Cell(tr("unclear: {shares}", shares=texts), "unclear")
    return Cell(tr("{run}: {shares}", run=winner.name, shares=texts), "better", -place)


def _apart(one: Result, two: Result, best: float, second: float) -> bool:
    """Two shares differ by more than their sampling noise (two standard errors) and by more than 2%."""
    variance = sum(
        share * (1 - share) / max(result.metrics.requests, 1) for share, result in ((best, one), (second, two))
    )
    return best - second > max(0.02, 2 * math.sqrt(variance))
