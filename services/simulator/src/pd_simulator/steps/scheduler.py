"""Continuous batching: which tokens the next step computes. Pure: time is an argument, so tests run it in virtual time.

As vLLM's V1 scheduler: sequences that run come first, one token each (or the next chunk of a long prompt); then waiting ones,
first come first served, while there are tokens, places and KV room left. KV lies in blocks. A sequence is admitted if the blocks for all
tokens that it has by now are free; its output takes further blocks as it grows. When there is none left, the sequence that was admitted
last is preempted: it loses its KV and waits, before all others, to be computed again, with what it has written. No other sequence is admitted
in such a step. vLLM's `watermark`, blocks that admission leaves free, is 0 by default and not modelled.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass

from pd_simulator.kv_blocks import BLOCK_TOKENS, blocks_of
from pd_simulator.steps.step_time import Sent, StepWork


@dataclass(slots=True, eq=False)
class Job:
    """One sequence as the scheduler sees it.

    Attributes:
        external: prompt tokens whose KV comes from elsewhere, or lies in the prefix cache, and need no compute.
        stall_s: for how long loading that KV holds up the first step.
        again: after a preemption, that KV can be had once more, and is loaded once more.
        sends: the KV leaves this engine when the prompt is computed; `peer` is the engine that it goes to.
        computed: tokens whose KV exists here, prompt and output together.
        generated: output tokens so far.
    """

    prompt_tokens: int
    max_tokens: int
    external: int = 0
    stall_s: float = 0.0
    again: bool = False
    sends: bool = False
    peer: int = 0
    computed: int = 0
    generated: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output so far."""
        return self.prompt_tokens + self.generated

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next output token is known."""
        return self.tokens - self.computed


@dataclass(frozen=True, slots=True)
class Slot:
    """A job's share of a step: how many tokens, whether they are its first, and whether the step ends with an output token of it."""

    job: Job
    tokens: int
    first: bool
    emits: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's limits, as vLLM's options of the same names; `chunked` lets a prompt be spread over several steps.

    With `async_scheduling` a step is planned while the one before it runs, as vLLM does by default: a request that comes meanwhile
    waits for the step after the next, and so does one that needs the room of a sequence that ends meanwhile.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int
    chunked: bool = True
    async_scheduling: bool = False


class Scheduler:
    """Queues and the running batch.

    Attributes:
        planned: when the last step was planned.
        preemptions: how many there were.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._order = itertools.count()
        self._arriving: list[tuple[float, int, Job]] = []
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, None] = {}
        self._ended = set[Job]()  # in the batch still, as the next step is planned before their last tokens are known
        self._began = 0.0
        self.planned = 0.0
        self.preemptions = 0

    @property
    def running(self) -> int:
        return len(self._running) - len(self._ended)

    @property
    def waiting(self) -> int:
        """Jobs that are not in the batch yet."""
        return len(self._waiting) + len(self._arriving)

    @property
    def kv_used(self) -> int:
        """Tokens whose KV lies in the cache now."""
        return sum(job.computed for job in self._running)

    @property
    def kv_blocks(self) -> int:
        """Blocks that the running jobs have now."""
        return sum(blocks_of(job.computed) for job in self._running)

    def add(self, job: Job, ready_at: float) -> None:
        """Queue a job; no step before `ready_at` sees it."""
        heapq.heappush(self._arriving, (ready_at, next(self._order), job))

    def remove(self, job: Job) -> None:
        """Forget a job at once, wherever it is: its client left."""
        if job in self._running:
            del self._running[job]
            self._dismiss()
        elif job in self._waiting:
            self._waiting.remove(job)
        else:
            self._arriving = [entry for entry in self._arriving if entry[2] is not job]
            heapq.heapify(self._arriving)

    def end(self, job: Job) -> None:
        """A running job has its last token. It keeps its KV and its place while the next step is planned, if that was planned without knowing."""
        self._ended.add(job)
        self._dismiss()

    def _dismiss(self) -> None:
        """Forget jobs that have ended if no step was planned meanwhile: it would have had nothing to go on with."""
        if not (self._limits.async_scheduling and self.running):
            self._forget_ended()

    def _forget_ended(self) -> None:
        for job in self._ended:
            self._running.pop(job, None)
        self._ended.clear()

    def next_start(self, now: float) -> float | None:
        """When the next step can begin: `now` if there is work, the next arrival's time if there will be, else None."""
        if self._running or self._waiting:
            return now
        return max(now, self._arriving[0][0]) if self._arriving else None

    def plan(self, now: float, launched: float = 0.0) -> list[Slot]:
        """Choose what the step that begins at `now` computes, and admit waiting jobs into the batch.

        No step is planned before the processor has `launched` the one before.
        """
        beside = self._limits.async_scheduling and self._running
        self.planned = max(self._began, launched) if beside else now
        self._began = now
        while self._arriving and self._arriving[0][0] <= self.planned:
            self._waiting.append(heapq.heappop(self._arriving)[2])
        slots, free, full = self._going_on()
        budget = self._limits.max_num_batched_tokens - sum(slot.tokens for slot in slots)
        while not full and self._waiting and (tokens := self._admissible(self._waiting[0], budget, free)):
            job = self._waiting.popleft()
            job.computed = job.external
            self._running[job] = None
            slots.append(Slot(job, tokens, first=True, emits=tokens == job.remaining))
            budget -= tokens
            free -= blocks_of(job.computed + tokens)
        without = bool(self._ended)
        self._forget_ended()
        # What was left to go on is preempted: it is planned again when the step before has ended.
        return slots if slots or not without else self.plan(now, launched)

    def _going_on(self) -> tuple[list[Slot], int, bool]:
        """What the running jobs get, blocks that are free then, and whether jobs were preempted for it."""
        free, budget, before = self._room - self.kv_blocks, self._limits.max_num_batched_tokens, self.preemptions
        slots, queue = [], deque(self._running)
        while queue and budget:
            job = queue.popleft()
            if job in self._ended:
                continue
            tokens = min(job.remaining, budget)
            needed = blocks_of(job.computed + tokens) - blocks_of(job.computed)
            while needed > free and queue:
                free += self._preempt(queue.pop())
            if needed > free:
                free += self._preempt(job)
                break
            slots.append(Slot(job, tokens, first=False, emits=tokens == job.remaining))
            budget -= tokens
            free -= needed
        return slots, free, self.preemptions > before

    def _preempt(self, job: Job) -> int:
        """Take a job's KV away and let it wait before all others, unless it has all its tokens; returns the number of blocks."""
        freed = blocks_of(job.computed)
        del self._running[job]
        self.preemptions += 1
        if job in self._ended:
            self._ended.remove(job)
            return freed
        job.computed = 0
        if not job.again:
            job.external, job.stall_s = 0, 0.0
        self._waiting.appendleft(job)
        return freed

    @property
    def _room(self) -> int:
        return self._limits.kv_tokens // BLOCK_TOKENS

    def _admissible(self, job: Job, budget: int, free: int) -> int:
        limits = self._limits
        if len(self._running) >= limits.max_num_seqs or blocks_of(job.tokens) > free:
            return 0
        needed = job.tokens - job.external
        if needed > budget and not limits.chunked:
            return 0
        return min(needed, budget)


def complete(slot: Slot) -> None:
    """Book a slot's tokens as computed, and its output token if it has one."""
    slot.job.computed += slot.tokens
    slot.job.generated += slot.emits


def work_of(slots: list[Slot]) -> StepWork:
    """What the step model needs to know about a step."""
    prompts = [slot for slot in slots if slot.tokens > 1]
    singles = [slot for slot in slots if slot.tokens == 1]
    return StepWork(
        prefill_tokens=sum(slot.tokens for slot in prompts),
        prefill_pairs=sum(slot.tokens * (slot.job.computed + slot.tokens / 2) for slot in prompts),
        decodes=len(singles),
        context_tokens=sum(slot.job.computed for slot in singles),
        stall_s=sum(slot.job.stall_s for slot in slots if slot.first),
        sent=tuple(
            Sent(slot.job.prompt_tokens, slot.job.peer)
            for slot in slots
            if slot.job.sends and slot.emits and not slot.job.generated
        ),
    )
