"""Why nothing answers a question, and how far off it is."""

from collections.abc import Sequence

import numpy as np

from pd_analysis.words.language import ntr, tr
from pd_planner.search.candidates import Candidate
from pd_planner.search.capacity import run
from pd_planner.search.question import Choice, Question


class NoPlanError(ValueError):
    """Nothing answers the question; the message says what is in the way, and how far off it is."""


def out_of_reach(question: Question, found: Sequence[Candidate]) -> str:
    """Nothing is fast enough even without a queue: by how much."""
    setting = question.setting
    lone = setting.traffic.rate * 1e-4
    singles = {candidate: candidate for candidate in found if candidate.gpus <= 2 * question.tensor_parallel}
    singles = singles or {found[0]: found[0]}
    parts = []
    for metric, limit in setting.limits.milliseconds.items():
        values = []
        for candidate in singles:
            outcome = run(setting, candidate, lone)
            column = {"ttft": outcome.ttft_ms, "tpot": outcome.tpot_ms, "e2el": outcome.e2el_ms}[metric]
            share = np.sort(column[np.isfinite(column)])
            if share.size:
                values.append(float(share[int(setting.limits.attainment * (share.size - 1))]))
        if values and min(values) > limit:
            parts.append(
                tr(
                    "{metric} is {least} ms at least, and the limit is {limit}",
                    metric=metric.upper(),
                    least=f"{min(values):,.1f}",
                    limit=f"{limit:g}",
                )
            )
    what = "; ".join(parts) or tr("the limits cannot be met together")
    return tr(
        "nothing meets {limits}, not even without load: {reason}; --goodput sets other limits",
        limits=setting.limits.words,
        reason=what,
    )


def closest(question: Question, ranked: Sequence[Choice]) -> str:
    """Nothing fits the budget or the rate: what came nearest, and what is in its way."""
    able = [choice for choice in ranked if choice.fleet.carries > 0]
    reasons = [f"{choice.fleet.label} ({choice.refusal})" for choice in able]
    fewest = min((choice.fleet.gpus for choice in able), default=0)
    few = question.gpus is not None and fewest > question.gpus
    if few:
        reasons = [*reasons[:3], tr("the fewest are {count}", count=f"{fewest:,}")]
    return tr(
        "{budget} cannot serve {load}: {reasons}",
        budget=_budget(question),
        load=tr("{rate} requests/s", rate=f"{question.rate:g}") if question.rate is not None else tr("this traffic"),
        reasons="; ".join(reasons if few else reasons[:3]),
    )


def _budget(question: Question) -> str:
    """GPUs and watts that there may be."""
    few = question.gpus
    cap = question.power_cap_w
    if few is None:
        return tr("any number of GPUs") if cap is None else tr("GPUs with {watts} W in all", watts=f"{cap:,.0f}")
    gpus = ntr("{count} GPU", "{count} GPUs", few)
    return gpus if cap is None else tr("{gpus} with {watts} W in all", gpus=gpus, watts=f"{cap:,.0f}")
