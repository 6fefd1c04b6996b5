"""A run's manifest: as it is written before the first request, and as it ends."""

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import msgspec

import pd_contracts
from pd_contracts.latency import parse_goodput
from pd_contracts.records import ClientHealth, Clock, Deployment, Manifest, Workload
from pd_contracts.urls import without_secret
from pd_loadgen.client.backends import BACKENDS
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.workload.load_options import load_options
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.pace import at_once, pace
from pd_loadgen.workload.plan import Plan
from pd_loadgen.workload.schedule import Arrival

EXIT_COMPLETE, EXIT_BAD, EXIT_LATE, EXIT_FAILED, EXIT_STOPPED = 0, 2, 3, 4, 130


@dataclass(frozen=True)
class Outcome:
    """How a run went: whether all of its schedule was sent, the measured window, and the client's health."""

    complete: bool
    window: tuple[float, float]
    client: ClientHealth
    notes: list[str] = field(default_factory=list)


def begin(
    run_id: str, options: Options, model: str, plan: Plan, *, deployment: Deployment, command: Sequence[str]
) -> Manifest:
    """The manifest of a run that has not begun; `clock` ties the records' monotonic clock to the wall."""
    clock = Clock.now()
    software = {**deployment.software, "pd-loadgen": pd_contracts.__version__, "locust": version("locust")}
    return Manifest(
        run_id=run_id,
        created=_utc(clock.wall),
        clock=clock,
        deployment=msgspec.structs.replace(deployment, software=software),
        workload=_workload(options, model, plan),
        schedule_hash=plan.hash,
        title=options.title,
        command=[without_secret(word) for word in command],
        host=_host(),
        url=without_secret(options.url),
        notes=[str(note) for note in plan.notes],
    )


def end(manifest: Manifest, outcome: Outcome) -> Manifest:
    """The manifest of a run that is over. Where answers set the pace, the rate is known only now."""
    workload = manifest.workload
    if workload.rate == 0:
        seconds = max(outcome.window[1] - outcome.window[0], 1e-9)
        workload = msgspec.structs.replace(workload, rate=round(workload.requests / seconds, 6), duration_s=seconds)
    return msgspec.structs.replace(
        manifest,
        workload=workload,
        complete=outcome.complete,
        window=outcome.window,
        client=outcome.client,
        notes=[*manifest.notes, *outcome.notes],
    )


def exit_status(manifest: Manifest, served: int) -> int:
    """What the command returns for a run with this manifest and so many served requests."""
    if not manifest.complete:
        return EXIT_STOPPED
    if served == 0:
        return EXIT_FAILED
    return EXIT_COMPLETE if manifest.client is None or manifest.client.valid else EXIT_LATE


def _workload(options: Options, model: str, plan: Plan) -> Workload:
    serve = options.mode is Mode.SERVE
    drawn = options.arrival in (Arrival.POISSON, Arrival.GAMMA)
    return Workload(
        dataset=str(options.dataset),
        arrival=_arrival(options),
        rate=_rate(options, plan),
        duration_s=_seconds(options, plan),
        requests=plan.total,
        seed=options.seed,
        model=model,
        burstiness=options.burstiness if serve and drawn and not plan.paced else None,
        input_tokens=options.input_tokens + options.prefix_tokens if _known(options) else None,
        output_tokens=options.output_tokens if _known(options) else None,
        input_spread=[] if _known(options) else plan.inputs,
        output_spread=[] if _known(options) else plan.outputs,
        endpoint=options.path or BACKENDS[options.endpoint].path,
        goodput=parse_goodput([options.goodput]),
        warmup_requests=len(plan.warmups),
        max_concurrency=options.max_concurrency or None,
        batch_sizes=list(options.batch_sizes) if options.mode is Mode.BATCH else [],
        options=load_options(options, known=_known(options)),
    )


def _rate(options: Options, plan: Plan) -> float:
    if plan.paced:
        return 0.0
    return len(plan.requests) / _seconds(options, plan) if options.arrival is Arrival.REPLAY else options.rate


def _arrival(options: Options) -> str:
    """How requests follow each other; all at once is a batch of the records, unless some wait for others."""
    if options.mode is not Mode.SERVE or (at_once(options) and not options.max_concurrency):
        return str(options.mode if options.mode is not Mode.SERVE else Mode.BATCH)
    return str(pace(options))


def _seconds(options: Options, plan: Plan) -> float:
    """Over how long requests are sent; 0 where answers decide it."""
    if plan.paced:
        return 0.0
    if math.isfinite(options.duration):
        return options.duration
    last = max(plan.requests[-1].offset, 1e-3)
    return last if options.arrival is Arrival.REPLAY else len(plan.requests) / options.rate


def _known(options: Options) -> bool:
    """Whether all requests have the lengths of the options, on average."""
    made = options.dataset in (Dataset.RANDOM, Dataset.TEXT)
    return made and options.arrival is not Arrival.REPLAY and options.turns == 1


def _host() -> dict[str, str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpus": str(usable),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _utc(wall: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
