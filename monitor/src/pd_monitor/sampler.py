"""Reads the back end on schedule: slowly while nothing is recorded, fast while something is."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec

from pd_contracts.names import Role
from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.plausibility import Plausibility
from pd_monitor.reading import POWER_READINGS, WHOLE_GPU, Backend, Reading, Tick, silence
from pd_monitor.schedule import Schedule

# A sample is shown until so many intervals (but no less than a second) have passed without a new one.
STALE_INTERVALS = 3
LEAST_STALE_S = 1.0

R = TypeVar("R", GpuInfo, GpuSample)

_log = logging.getLogger(__name__)


class Sampler:
    """Owns the schedule and the last tick. `interval` is asked before every tick, so it may change at any time."""

    def __init__(self, backend: Backend, roles: Mapping[int, Role], interval: Callable[[], float]) -> None:
        self.backend = backend
        self.latest: Tick | None = None
        self.last_success: Tick | None = None
        self.watchers: list[Callable[[Tick], None]] = []
        self._roles = roles
        self._interval = interval
        self._wake = asyncio.Event()
        self._change_wanted = False
        self._ticked = asyncio.Condition()
        self._told: dict[tuple[str, tuple[str, ...]], str] = {}
        self._plausibility: dict[int, Plausibility] = {}

    @property
    def gpus(self) -> tuple[GpuInfo, ...]:
        """The GPUs known at the last tick."""
        return self.latest.reading.gpus if self.latest else ()

    @property
    def current(self) -> Tick | None:
        """The last tick, unless it is too old to be shown as the present."""
        limit = max(STALE_INTERVALS * self._interval(), LEAST_STALE_S)
        return self.latest if self.latest and time.monotonic() - self.latest.ended <= limit else None

    @property
    def problem(self) -> str:
        """Why no GPU can be read now, in a sentence; empty if one can."""
        if self.latest is None:
            return "the first sample has not come yet"
        if self.current is None:
            return f"the last sample is {time.monotonic() - self.latest.ended:.1f} s old: the back end hangs"
        if self.latest.readable:
            return ""
        return self.latest.reading.problem or self.unreadable or "there is no GPU"

    @property
    def silent(self) -> dict[int, str]:
        """Which GPUs reported neither power nor energy at the last tick, with the reason."""
        samples = self.latest.reading.samples if self.latest else ()
        return {sample.index: reason for sample in samples if (reason := silence(sample))}

    @property
    def unreadable(self) -> str:
        """The same as a sentence; empty if all GPUs report."""
        return "; ".join(f"GPU {index}: {reason}" for index, reason in self.silent.items())

    def change(self) -> None:
        """Say that the interval may have changed: the next tick is now."""
        self._change_wanted = True
        self._wake.set()

    async def tick_begun_after(self, moment: float, timeout: float) -> bool:
        """Wait until a tick that began after `moment` (monotonic) is complete; False if none came in time."""

        def reached() -> bool:
            return self.latest is not None and self.latest.begun >= moment

        try:
            async with asyncio.timeout(timeout), self._ticked:
                await self._ticked.wait_for(reached)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        schedule, missed = Schedule(time.monotonic(), self._interval()), 0
        while True:
            await self._tick(missed)
            schedule, missed = schedule.after(time.monotonic())
            if await self._changed_before(schedule.deadline):
                schedule, missed = Schedule(time.monotonic(), self._interval()), 0

    async def _changed_before(self, deadline: float) -> bool:
        # The event loop's clock is time.monotonic, so the deadline needs no conversion. A timer that sets the event costs a
        # fraction of a time-out that cancels the wait, ten times a second.
        timer = asyncio.get_running_loop().call_at(deadline, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()
        changed, self._change_wanted = self._change_wanted, False
        return changed

    async def _tick(self, missed: int) -> None:
        begun = time.monotonic()
        reading = await self.backend.sample()
        ended = time.monotonic()
        reading = with_roles(reading, self._roles)
        tick = Tick(begun, ended, time.time(), reading, missed, self._implausible(reading))
        self.latest = tick
        if tick.readable:
            self.last_success = tick
        self._report(tick)
        for watcher in self.watchers:
            watcher(tick)
        async with self._ticked:
            self._ticked.notify_all()

    def _implausible(self, reading: Reading) -> dict[int, Mapping[str, str]]:
        limits = {info.index: info.power_limit_w for info in reading.gpus}
        found = {
            sample.index: self._plausibility.setdefault(sample.index, Plausibility()).doubts(
                sample, limits.get(sample.index)
            )
            for sample in reading.samples
        }
        return {index: doubts for index, doubts in found.items() if doubts}

    def _report(self, tick: Tick) -> None:
        """Log what changed since the last tick, so that a lasting failure is one line and not ten a second."""
        now = failures(tick)
        for gpu, names in now.keys() - self._told.keys():
            _log.warning("reading failed", extra={"gpu": gpu, "readings": ", ".join(names), "reason": now[gpu, names]})
        for gpu in {gpu for gpu, _ in self._told} - {gpu for gpu, _ in now}:
            _log.info("reading works again", extra={"gpu": gpu})
        self._told = now


def failures(tick: Tick) -> dict[tuple[str, tuple[str, ...]], str]:
    """Why power or energy is missing or implausible, by GPU ("all" for the back end), with the readings concerned."""
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    if tick.reading.problem:
        found["all", (WHOLE_GPU,)] = tick.reading.problem
    for sample in tick.reading.samples:
        failed = {name: sample.errors[name] for name in (WHOLE_GPU, *POWER_READINGS) if name in sample.errors}
        for reasons in (failed, tick.implausible.get(sample.index, {})):
            if reasons:
                found[str(sample.index), tuple(reasons)] = ", ".join(dict.fromkeys(reasons.values()))
    return found


def with_roles(reading: Reading, roles: Mapping[int, Role]) -> Reading:
    """Give each GPU its role: what the board says about itself, else what the settings say about its index."""
    return replace(
        reading,
        gpus=tuple(_with_role(info, roles) for info in reading.gpus),
        samples=tuple(_with_role(sample, roles) for sample in reading.samples),
    )


def _with_role(record: R, roles: Mapping[int, Role]) -> R:
    if record.role is not None or record.index not in roles:
        return record
    return msgspec.structs.replace(record, role=roles[record.index])
