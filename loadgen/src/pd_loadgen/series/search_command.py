"""`pd-loadgen search`: the runs of a search for the highest rate, one folder per rate and seed, and what they say."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pd_contracts import latency
from pd_contracts.records import MANIFEST, REQUESTS, Manifest, RequestRecord, read_json, read_lines, write_json
from pd_contracts.urls import without_secret
from pd_loadgen.client.access import keep_secret
from pd_loadgen.results.manifests import EXIT_BAD, EXIT_COMPLETE, EXIT_FAILED, EXIT_STOPPED
from pd_loadgen.series import rate_search
from pd_loadgen.series.rate_search import Answer, Goal, Probe
from pd_loadgen.series.runner import Series
from pd_loadgen.series.sweep import Point
from pd_loadgen.workload import options
from pd_loadgen.workload.option_fields import EARLIER_RUN
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.schedule import Arrival

RESULT = "search.json"


class SearchError(ValueError):
    """The search cannot go on; the message is one sentence."""


def add(commands: Any, guarded: Callable[[Callable[[argparse.Namespace], int]], Any]) -> None:
    """Add the subcommand: the options of `run`, and where to look."""
    parser = commands.add_parser(
        "search",
        help="find the highest rate at which enough requests meet the --goodput limits; resumes where it stopped",
    )
    options.add_arguments(parser)
    parser.add_argument(
        "--attainment",
        type=float,
        default=0.9,
        metavar="X",
        help="share of requests that must meet the limits (default 0.9)",
    )
    parser.add_argument("--low", type=float, required=True, metavar="X", help="lowest rate to try, requests per second")
    parser.add_argument(
        "--high", type=float, required=True, metavar="X", help="highest rate to try, requests per second"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="seeds per rate, from --seed on (default 3)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="X",
        help="width of the answer's interval, as a fraction of the rate (default 0.05)",
    )
    parser.add_argument(
        "--most-rates", type=int, default=12, metavar="N", help="try at most this many rates (default 12)"
    )
    parser.set_defaults(execute=guarded(_execute))


def _execute(given: argparse.Namespace) -> int:
    chosen = options.given(given)
    read = options.load(chosen)
    goal = Goal(given.attainment, given.low, given.high, given.tolerance, given.most_rates)
    _check(read, goal, given.repeats)
    folder = Path(read.out)
    keep_secret(options.address(chosen).secret)
    kept = {**chosen, **({"url": without_secret(chosen["url"])} if "url" in chosen else {})}
    base = {name: text for name, text in kept.items() if name not in {"out", "rate", "seed"} | EARLIER_RUN}
    series = Series(folder, sys.stderr)
    probes: list[Probe] = []
    gpus: int | None = None
    while (rate := rate_search.next_rate(goal, probes)) is not None:
        runs = [_run(series, base, rate, read.seed + number) for number in range(given.repeats)]
        if any(run is None for run in runs):
            return EXIT_STOPPED if series.stopped else EXIT_BAD
        probe = _pooled(rate, [run for run in runs if run is not None])
        gpus = read_json(runs[0] / MANIFEST, Manifest).deployment.gpus if runs[0] else None
        probes.append(probe)
        sys.stderr.write(f"pd-loadgen: rate {rate:g}: {_share(probe)} of {probe.requests} requests\n")
    found = rate_search.answer(goal, probes)
    write_json(folder / RESULT, _result(goal, probes, found, gpus))
    sys.stdout.write(_sentence(goal, found, gpus) + "\n")
    return EXIT_COMPLETE if found.rate is not None else EXIT_FAILED


def _check(read: Options, goal: Goal, repeats: int) -> None:
    problems = (
        (not read.out, "search needs --out: the folder of its runs"),
        (not read.goodput, "search needs --goodput: the limits to meet"),
        (not 0 < goal.low < goal.high < math.inf, "--low must be above 0 and below --high, which must be finite"),
        (not 0 < goal.attainment <= 1, "--attainment must be above 0 and at most 1"),
        (goal.tolerance <= 0 or repeats < 1 or goal.most < 2, "--tolerance, --repeats and --most-rates are too small"),
        (read.arrival not in (Arrival.POISSON, Arrival.GAMMA, Arrival.CONSTANT), "search needs an arrival with a rate"),
    )
    for wrong, sentence in problems:
        if wrong:
            raise SearchError(sentence)


def _run(series: Series, base: dict[str, str], rate: float, seed: int) -> Path | None:
    """Do one run; None if the search cannot go on. A run in which every request failed counts: nothing was met."""
    point = Point(f"rate{rate:g}-seed{seed}", {**base, "rate": f"{rate:.9g}", "seed": str(seed)})
    status = series.one(point, "search")
    if series.stopped or status in (EXIT_BAD, EXIT_STOPPED):
        return None
    folder = series.folder / point.name
    client = read_json(folder / MANIFEST, Manifest).client
    if client is not None and not client.valid:
        msg = f"{folder} is INVALID, so the search has no answer: {client.remedy}"
        raise SearchError(msg)
    return folder


def _pooled(rate: float, folders: Sequence[Path]) -> Probe:
    good = requests = 0
    for folder in folders:
        limits = read_json(folder / MANIFEST, Manifest).workload.goodput
        measured = [one for one in read_lines(folder / REQUESTS, RequestRecord) if not one.warmup]
        good += sum(latency.meets(one, limits) for one in measured)
        requests += len(measured)
    return Probe(rate, good, requests)


def _result(goal: Goal, probes: Sequence[Probe], found: Answer, gpus: int | None) -> dict[str, Any]:
    per_gpu = found.rate / gpus if gpus and found.rate is not None else None
    rows = [
        {
            "rate": one.rate,
            "good": one.good,
            "requests": one.requests,
            "attainment": one.share,
            "wilson95": one.interval,
        }
        for one in sorted(probes, key=lambda one: one.rate)
    ]
    return {
        "goal": {"attainment": goal.attainment, "low": goal.low, "high": goal.high, "tolerance": goal.tolerance},
        "rate": found.rate,
        "rate_per_gpu": per_gpu,
        "interval": (found.at_least, found.at_most),
        "close": found.close,
        "probes": rows,
    }


def _sentence(goal: Goal, found: Answer, gpus: int | None) -> str:
    if found.rate is None:
        return f"no rate meets the goal: at {goal.low:g} requests/s fewer than {goal.attainment:.0%} of the requests meet the limits"
    per_gpu = f" ({found.rate / gpus:.4g} per GPU)" if gpus else ""
    low = "?" if found.at_least is None else f"{found.at_least:g}"
    high = "?" if found.at_most is None else f"{found.at_most:g}"
    bound = "" if found.close else "; not narrowed down: raise --high or --most-rates"
    return f"{found.rate:g} requests/s{per_gpu} with {goal.attainment:.0%} within the limits; 95% interval {low} to {high}{bound}"


def _share(probe: Probe) -> str:
    low, high = probe.interval
    return f"{probe.share:.1%} ({low:.1%} to {high:.1%})"
