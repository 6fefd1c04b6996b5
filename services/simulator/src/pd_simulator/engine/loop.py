"""The engine: takes requests, runs steps in time, moves KV, hands out tokens.

Steps follow each other on absolute deadlines: a step begins when the one before it should have ended (or when its first request was
ready), not when this process got round to it, so lateness of the event loop shows as jitter of a token and never adds up.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from pd_simulator.clock import sleep_until
from pd_simulator.engine.board import SimulatedBoard
from pd_simulator.engine.request import Request
from pd_simulator.engine.stats import Stats
from pd_simulator.errors import ApiError
from pd_simulator.profile import Profile
from pd_simulator.steps.launching import Launching
from pd_simulator.steps.scheduler import Job, Limits, Scheduler, Slot, complete, work_of
from pd_simulator.steps.step_time import StepModel
from pd_simulator.tokenizer import END_OF_TEXT
from pd_simulator.transfer.base import Move, Transfer
from pd_simulator.transfer.kv_cache import ENTRY_BYTES, KvCache, followed, next_token, noise

# An engine that a fault stops checks this often whether the fault is over.
HOLD_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts that an engine is built from.

    Attributes:
        draws_by_position: as SIM_DRAWS_BY_POSITION.
        draws: what /metrics says of that (`pd_seeded_draws`); nothing if empty.
    """

    profile: Profile
    limits: Limits
    steps: StepModel
    board: SimulatedBoard
    transfer: Transfer
    model: str
    words: range
    draws_by_position: bool = True
    draws: str = ""
    number: int = 0


class Engine:
    """One engine of any role; what the role means is in its limits and its transfer."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.stats = Stats()
        self.scheduler = Scheduler(machine.limits)
        self.failed = False
        self._requests: dict[str, Request] = {}
        self._by_job: dict[Job, Request] = {}
        self._caches: dict[Job, KvCache] = {}
        self._leaving: list[Request] = []
        self._held: Sequence[Callable[[], None]] = ()
        self._written: Sequence[Callable[[], None]] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._launching = Launching(machine.steps.launch, machine.number)
        self._free_at = time.monotonic()

    @property
    def kv_usage(self) -> float:
        """Share of the KV room that is filled."""
        return self.scheduler.kv_used / self.machine.limits.kv_tokens

    @property
    def fetching(self) -> int:
        """Requests that wait for KV outside the batch."""
        return len(self._tasks)

    def submit(self, requests: list[Request]) -> None:
        """Take the sequences of one HTTP request, all or none.

        Raises:
            ApiError: for an id that is in use, or a request that the transfer cannot serve.
        """
        for request in requests:
            if request.request_id in self._requests:
                msg = f"Request id {request.request_id} already running."
                raise ApiError(msg)
            request.plan = self.machine.transfer.plan(request.move)
        for request in requests:
            self._requests[request.request_id] = request
            self._admit(request)

    def abort(self, request: Request) -> None:
        """Forget a request; takes effect between steps, as in vLLM."""
        if self._requests.get(request.request_id) is request:
            self._leaving.append(request)
            self._wake.set()

    async def run(self) -> None:
        """Run steps forever. An engine that has stalled is healthy, one whose loop ended has `failed`: as in vLLM."""
        try:
            while True:
                self._dismiss()
                start = self.scheduler.next_start(self._free_at)
                if start is None or not await self._step(start):
                    self._hand_out(self._written)  # the step that these waited for does not come
                    self._written = ()
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            self.failed = True

    async def close(self) -> None:
        """Drop what is being fetched."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _admit(self, request: Request) -> None:
        external = min(request.plan.external, len(request.prompt) - 1)
        request.job = Job(
            prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            external=external,
            stall_s=self.machine.steps.stall_s(external) if external else 0.0,
            sends=request.plan.sends,
            peer=request.plan.peer,
        )
        self._by_job[request.job] = request
        ready_at = request.arrival + self.machine.profile.api_ms / 1e3
        if request.plan.fetches:
            request.task = self._spawn(self._fetch(request, ready_at))
            return
        if external:
            ready_at += self.machine.steps.wait_s(external)
        self._queue(request, ready_at)

    def _queue(self, request: Request, ready_at: float) -> None:
        self.scheduler.add(request.job, ready_at)
        self._wake.set()

    async def _fetch(self, request: Request, ready_at: float) -> None:
        await sleep_until(ready_at)
        try:
            entries = await self.machine.transfer.fetch(request.move)
        except ApiError as error:
            self._forget(request, "error")
            request.sink.fail(error)
            return
        if entries is None:
            request.job.external, request.job.stall_s = 0, 0.0
            self._queue(request, time.monotonic())
            return
        request.entries = entries
        ready_at = max(ready_at, time.monotonic()) + self.machine.steps.wait_s(request.job.external)
        await sleep_until(ready_at)
        self._queue(request, ready_at)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _step(self, start: float) -> bool:
        """Run the step that begins at `start`; False if there is nothing that could run."""
        await sleep_until(start)
        slots = self.scheduler.plan(start, self._launching.launched)
        if not slots:
            return False
        work = work_of(slots)
        launched = self._launching.waits(work, self.scheduler.planned)
        await self._tell(launched if self.scheduler.planned < start else start)
        start = await self._load(slots, await self._held_up(slots, start))
        step = self.machine.steps.step(work)
        self.machine.board.step(start, step, work.decodes)
        computed, end = self._compute(slots), self._launching.end(launched, start + step.seconds)
        if computed and not self.machine.transfer.sends_beside:
            await self._save(computed)
            end = max(end, time.monotonic())
        await sleep_until(end)
        if computed and self.machine.transfer.sends_beside:
            await self._save(computed)
        self._free_at = end
        now = time.monotonic()
        self._book(slots, now - end)
        answers = [answer for slot in slots if (answer := self._emit(slot, now))]
        follows = self.scheduler.next_start(end) == end
        late = self.machine.steps.late_answers and bool(work.sent) and follows
        waits = follows and not late and self._launching.costs
        self._written = answers if waits else ()
        self._hand_out(() if late or waits else answers, held=answers if late else ())
        return True

    async def _tell(self, launched: float) -> None:
        """Hand out what the last step wrote, which waits while the processor launches the next one."""
        if self._written:
            await sleep_until(launched)
            self._hand_out(self._written)
            self._written = ()

    async def _save(self, computed: list[tuple[Move, bytes]]) -> None:
        await asyncio.gather(*(self.machine.transfer.save(*save) for save in computed))

    def _hand_out(self, answers: Sequence[Callable[[], None]], held: Sequence[Callable[[], None]] = ()) -> None:
        """Hand out what was held back from the step before, and `answers`; hold `held` back until the next step has ended."""
        for answer in (*self._held, *answers):
            answer()
        self._held = held

    async def _held_up(self, slots: list[Slot], start: float) -> float:
        """Stand still, or die, as the faults say; returns when the step could really begin."""
        faults = self.machine.transfer.site.faults
        if faults.kills(self.stats.generation_tokens):
            os.kill(os.getpid(), signal.SIGKILL)
        while faults.stalls(slot.job.generated for slot in slots):
            await asyncio.sleep(HOLD_S)
            start = time.monotonic()
        return start

    async def _load(self, slots: list[Slot], start: float) -> float:
        """Bring in the KV that this step's new jobs need from elsewhere; returns when the step could really begin."""
        for slot in slots:
            if not slot.first:
                continue
            cache = self._caches[slot.job] = KvCache(self.machine.model)
            request, external = self._by_job[slot.job], slot.job.external
            if external and not request.plan.fetches:
                request.entries, since = await self.machine.transfer.load(request.move)
                start = max(start, since)
            cache.load(request.entries[: external * ENTRY_BYTES])
            request.entries = b""
        return start

    def _compute(self, slots: list[Slot]) -> list[tuple[Move, bytes]]:
        """Compute the KV of this step's tokens; returns what has to be sent away."""
        saves = []
        for slot in slots:
            job, request = slot.job, self._by_job[slot.job]
            tokens = request.tokens(job.computed, slot.tokens)
            entries = self._caches[job].compute(tokens)
            if job.generated == 0 and (request.plan.sends or request.plan.keeps):
                request.entries += entries
                if slot.emits and request.plan.sends:
                    saves.append((request.move, request.entries))
        return saves

    def _book(self, slots: list[Slot], late: float) -> None:
        self.stats.steps += 1
        self.stats.iteration_tokens.observe(sum(slot.tokens for slot in slots))
        self.stats.lateness.observe(max(0.0, late))

    def _emit(self, slot: Slot, now: float) -> Callable[[], None] | None:
        """Book a slot's token; returns what hands it out."""
        complete(slot)
        if not slot.emits:
            return None
        job, request = slot.job, self._by_job[slot.job]
        # A generator per request counts its own draws, so it begins anew where another engine continues an answer.
        number = job.generated + (len(request.prompt) if self.machine.draws_by_position else 0)
        token = next_token(
            self._caches[job],
            self.machine.words,
            end=END_OF_TEXT,
            end_one_in=self.machine.profile.eos_one_in,
            may_end=not request.ignore_eos and job.generated > request.min_tokens,
            noise=noise(request.seed, number) + request.written,
        )
        if request.written:
            request.written = followed(request.written, token)
        self._count(request, now)
        request.output.append(token)
        request.last_time = now
        reason = "stop" if token == END_OF_TEXT else "length" if job.generated >= request.max_tokens else None
        if reason is not None:
            self._forget(request, reason)
        return partial(request.sink.token, token, reason)

    def _count(self, request: Request, now: float) -> None:
        self.stats.generation_tokens += 1
        if request.job.generated > 1:
            self.stats.itl.observe(now - request.last_time)
            return
        self.stats.ttft.observe(now - request.arrival)
        self.stats.external_tokens += request.job.external
        self.stats.local_tokens += len(request.prompt) - request.job.external

    def _dismiss(self) -> None:
        """Drop the requests whose clients left."""
        for request in self._leaving:
            if self._requests.get(request.request_id) is request:
                self._forget(request, "abort")
        self._leaving.clear()

    def _forget(self, request: Request, reason: str) -> None:
        self.stats.finished[reason] += 1
        if reason in {"stop", "length"}:
            self.stats.e2e.observe(request.last_time - request.arrival)
        if request.task is not None and reason == "abort":
            request.task.cancel()
        leave = self.scheduler.end if reason in {"stop", "length"} else self.scheduler.remove
        leave(request.job)
        self._caches.pop(request.job, None)
        del self._by_job[request.job], self._requests[request.request_id]
        kept = request.entries if request.plan.keeps and reason in {"stop", "length"} else None
        move = replace(request.move, aborted=reason == "abort")
        request.handover = self.machine.transfer.finished(move, kept)
