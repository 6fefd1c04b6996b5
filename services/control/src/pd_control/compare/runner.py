"""The comparison itself: each deployment is started once, gets every point that is not done yet, and is stopped."""

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pd_contracts.records import NotMeasured
from pd_control.client import ClientError
from pd_control.compare.deployments import Spec
from pd_control.compare.folder import Results
from pd_control.compare.loads import Load, Point, arguments, command_line, repeats
from pd_control.compare.plan import OVERHEAD_S, Comparison, seconds_of
from pd_control.compare.rates import Outcome, next_rate
from pd_control.compare.stages import Stage, Target
from pd_control.context import Context
from pd_control.docker.compose import ContainerError
from pd_control.supervision import attached_command
from pd_control.supervision.supervisor import StartError

# pd-loadgen's exit statuses.
COMPLETE: Final = 0
CLIENT_LATE: Final = 3
FAILED: Final = 4
STOPPED: Final = 130


class TimeUp(Exception):  # noqa: N818 - no error: `--stop-after` asked for it
    """The next point would end later than allowed."""


class Tally(msgspec.Struct, kw_only=True):
    """The outcome: points measured now and before, those with a late client, what is missing, and whether time ran out."""

    measured: int = 0
    before: int = 0
    late: list[str] = msgspec.field(default_factory=list)
    missing: list[NotMeasured] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be measured and where it goes; no point may end after `ends`, monotonic seconds."""

    context: Context
    comparison: Comparison
    results: Results
    ends: float


class Runner:
    """Works through a comparison."""

    def __init__(self, work: Work, stage: Stage) -> None:
        self._work = work
        self._stage = stage
        self.tally = Tally()

    def run(self) -> None:
        """Measure all points that are not done.

        Raises:
            KeyboardInterrupt: after everything was stopped; what was measured stays.
        """
        for spec in self._work.comparison.stages:
            try:
                self._deployment(spec)
            except TimeUp:
                self._miss(spec.label, "the time of --stop-after is over; the same command continues from here")
            except (StartError, ContainerError) as error:
                self._work.context.terminal.error(str(error), error.lines)
                self._miss(spec.label, str(error))
            except ClientError as error:
                self._work.context.terminal.error(str(error))
                self._miss(spec.label, str(error))
            self._work.results.explain(self.tally.missing)

    def _miss(self, what: str, reason: str) -> None:
        self.tally.missing.append(NotMeasured(what=what, reason=reason))

    def _deployment(self, spec: Spec) -> None:
        """One deployment; it is not even started if all of it is done."""
        deployment = _Deployment(self._work, spec, self.tally)
        if deployment.next_point(_others(self._work, spec)) is None:
            self._work.context.terminal.verdict(ok=True, text=f"{spec.label}: every point was measured before")
            return
        if time.monotonic() > self._work.ends:
            raise TimeUp
        with self._stage(spec) as target:
            while (point := deployment.next_point(_others(self._work, spec))) is not None:
                deployment.measure(point, target)


def unfinished(work: Work) -> list[Spec]:
    """The deployments that still have points to measure."""
    return [
        spec
        for spec in work.comparison.stages
        if _Deployment(work, spec, Tally()).next_point(_others(work, spec)) is not None
    ]


def seconds_left(work: Work) -> float:
    """About how long it takes to measure what is not measured yet."""
    return sum(_Deployment(work, spec, Tally()).seconds_left() for spec in unfinished(work))


def _others(work: Work, spec: Spec) -> dict[str, set[float]]:
    """Rates, by load, that the deployments before this one had."""
    before = work.comparison.deployments[: _place(work.comparison.deployments, spec)]
    gathered: dict[str, set[float]] = {}
    for other in before:
        done = _Deployment(work, other, Tally())
        for load in work.comparison.offer.loads:
            gathered.setdefault(load.name, set()).update(done.outcomes(load))
    return gathered


def _place(specs: list[Spec], spec: Spec) -> int:
    return specs.index(spec) if spec in specs else 0


class _Deployment:
    """The points of one deployment: which comes next, and measuring it."""

    def __init__(self, work: Work, spec: Spec, tally: Tally) -> None:
        self._work, self._spec, self._tally = work, spec, tally
        self._given_up: set[str] = set()
        self._gpus = work.comparison.gpus_of(spec)

    def next_point(self, others: Mapping[str, Iterable[float]]) -> Point | None:
        """The first point that is not done and was not given up; None if there is none."""
        wanted = self._work.comparison.points(self._spec)
        found = next((point for point in wanted if not self._over(point)), None)
        if (
            found is not None
            or not self._work.comparison.offer.searches
            or self._spec not in self._work.comparison.deployments
        ):
            return found
        for load in filter(lambda load: load.searches, self._work.comparison.offer.loads):
            if (point := self._searched(load, set(others.get(load.name, ())))) is not None:
                return point
        return None

    def seconds_left(self) -> float:
        """About how long it takes to start it and to measure what is not done; not even started, it takes no time."""
        points = [point for point in self._work.comparison.points(self._spec) if not self._over(point)]
        loads = self._work.comparison.offer.loads
        rates = {load.name: sorted(self.outcomes(load)) for load in loads if load.searches}
        return seconds_of(self._work.comparison, self._spec, points, rates)

    def _searched(self, load: Load, others: set[float]) -> Point | None:
        """The next point of a load whose rates are to be found."""
        offer = self._work.comparison.offer
        done = self.outcomes(load)
        rate = next_rate(done, others, start=offer.start_rate, attainment=offer.attainment)
        if rate is None:
            return None
        return next((point for point in repeats(offer, load, rate, self._gpus) if not self._over(point)), None)

    def outcomes(self, load: Load) -> dict[float, Outcome]:
        """The result of every rate of a load over all seeds; rates with unfinished seeds are left out."""
        gathered: dict[float, Outcome] = {}
        for rate in self._rates_on_disk(load):
            points = list(repeats(self._work.comparison.offer, load, rate, self._gpus))
            outcomes = [self._work.results.outcome(self._spec.name, point.name) for point in points]
            if all(
                outcome is not None or point.name in self._given_up
                for outcome, point in zip(outcomes, points, strict=True)
            ):
                known = [outcome or Outcome(attainment=0.0) for outcome in outcomes]
                share = sum(outcome.attainment for outcome in known) / len(known)
                gathered[rate] = Outcome(attainment=share, client_in_time=all(o.client_in_time for o in known))
        return gathered

    def _rates_on_disk(self, load: Load) -> list[float]:
        prefix = f"{load.name}-rate"
        names = {path.name for path in (self._work.results.root / self._spec.name).glob(f"{prefix}*")} | {
            name for name in self._given_up if name.startswith(prefix)
        }
        return sorted({float(name.removeprefix(prefix).partition("-")[0]) for name in names})

    def _over(self, point: Point) -> bool:
        return point.name in self._given_up or self._work.results.done(self._spec.name, point.name, self._words(point))

    def _words(self, point: Point) -> list[str]:
        chosen = arguments(point, self._work.comparison.offer, self._gpus)
        return command_line({**chosen, "label": self._spec.label})

    def measure(self, point: Point, target: Target) -> None:
        """Run the load generator on one point.

        Raises:
            TimeUp: if it would end too late.
            StartError: if a part of the deployment died, or the load generator refused.
            FolderError: if the disk is full, so that no other point can be measured either.
        """
        if time.monotonic() + (point.duration_s or 0.0) + OVERHEAD_S > self._work.ends:
            raise TimeUp
        self._work.results.refuse_full_disk()
        self._work.context.terminal.say(f"{self._spec.label}: {point.words}{_lasting(point)}")
        folder = self._work.results.run(self._spec.name, point.name)
        status = attached_command.run(self._command(point, target, folder), self._work.context.environment, quiet=True)
        target.check()
        self._judge(point, status)

    def _command(self, point: Point, target: Target, folder: Path) -> list[str]:
        place = {
            "url": target.url,
            "model": target.model,
            "out": str(folder),
            "overwrite": "on",
            **({"monitor": target.monitor} if target.monitor else {}),
        }
        return [sys.executable, "-m", "pd_loadgen", "run", *self._words(point), *command_line(place)]

    def _judge(self, point: Point, status: int) -> None:
        name = f"{self._spec.label}, {point.words}"
        if status == STOPPED:
            raise KeyboardInterrupt
        if status not in (COMPLETE, CLIENT_LATE, FAILED):
            self._work.results.refuse_full_disk()
            why = self._work.results.remark(self._spec.name, point.name)
            msg = f"{name}: {why or f'pd-loadgen rejected its options or could not reach the proxy (exit status {status})'}"
            raise StartError(msg)
        self._tally.measured += 1
        if status == CLIENT_LATE:
            self._given_up.add(point.name)  # only for this start: the next one tries again
            self._tally.late.append(name)
        elif status == FAILED:
            self._tally.missing.append(NotMeasured(what=name, reason="every request failed"))
        self._work.context.terminal.verdict(status == COMPLETE, f"{point.name}: {self._result(point)}")

    def _result(self, point: Point) -> str:
        numbers = self._work.results.summary(self._spec.name, point.name)
        if not numbers:
            return "no summary was written"
        latencies = numbers["pdstack"]["latencies_ms"]
        parts = [
            f"{metric} p50 {_ms(latencies, metric, 'p50')}, p99 {_ms(latencies, metric, 'p99')} ms"
            for metric in ("TTFT", "TPOT")
        ]
        attained = (numbers["pdstack"].get("attainment") or {}).get("all")
        if attained is not None:
            parts.append(f"{attained:.1%} within the limits")
        if numbers["failed"]:
            parts.append(f"{numbers['failed']} failed")
        return "; ".join(parts)


def _ms(latencies: Mapping[str, Mapping[str, float | None]], metric: str, mark: str) -> str:
    value = latencies.get(metric, {}).get(mark)
    return "–" if value is None else f"{value:.1f}"


def _lasting(point: Point) -> str:
    return "" if point.duration_s is None else f", {point.duration_s:g} s"
