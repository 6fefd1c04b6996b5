"""The one measurement that would decide: two deployments under the load at which they differ most in meeting the limits."""

import shlex
from typing import Final

from pd_planner.confidence.draws import Drawn
from pd_planner.confidence.verdict import Verdict
from pd_planner.search.candidates import Candidate, name_of
from pd_planner.search.capacity import Setting
from pd_planner.search.plan import Objective
from pd_simulator.steps.engines import Order

_SECONDS: Final = 120


def command(setting: Setting, verdict: Verdict) -> str:
    """A command line of `pdctl compare`; empty if there are not two deployments."""
    if verdict.plain is None or verdict.apart is None:
        return ""
    apart = verdict.apart.choice.fleet.candidate
    rate = _rate(verdict.plain, verdict.apart, verdict.objective)
    gpus = max(apart.gpus, 1)
    words = ["pdctl", "compare", "--gpus", ",".join(map(str, range(gpus)))]
    words += ["--deployments", f"{gpus // apart.tensor_parallel}c,{_spec(apart)}", *_load(setting, rate)]
    limits = " ".join(f"{metric}:{limit:g}" for metric, limit in setting.limits.milliseconds.items())
    words += ["--goodput", limits]
    if not setting.traffic.recorded:
        words += ["--duration", str(_SECONDS), "--seeds", "0,1"]
    variables = _variables(apart)
    return " ".join((*variables, shlex.join(words)))


def _rate(plain: Drawn, apart: Drawn, objective: Objective) -> float:
    """Requests per second per GPU: for energy the rate that was asked for, else a rate between the two capacities, where they differ most."""
    if objective is Objective.ENERGY:
        return apart.choice.operation.rate / apart.choice.fleet.gpus
    return float((plain.band.middle * apart.band.middle) ** 0.5)


def _spec(candidate: Candidate) -> str:
    connector = f":{name_of(candidate.connector)}" if candidate.connector else ""
    return f"{candidate.prefills}p{candidate.others}d{connector}"


def _variables(candidate: Candidate) -> list[str]:
    size = candidate.tensor_parallel
    boards = [f"TENSOR_PARALLEL_SIZE={size}"] if size > 1 else []
    return [*boards, *(["FIRST_TOKEN=decode"] if candidate.order is Order.AT_ONCE else [])]


def _load(setting: Setting, rate: float) -> list[str]:
    options = setting.traffic.options
    if setting.traffic.recorded:
        return ["--trace", options["trace"]]
    lengths = f"{options.get('input_tokens', '512')}:{options.get('output_tokens', '64')}"
    return ["--input-output", lengths, "--rates", f"{rate:.3g}"]
