"""One engine whose requests become known one by one, because requests are routed as they come.

It interrupts and continues the loop of `decoding`: steps and times are the same as if all requests had been known before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from pd_planner.des.compiled import compiled
from pd_planner.des.decoding import (
    ARRIVED,
    CLOCK_COLUMNS,
    DECODING,
    DONE,
    FRESH,
    KNOWN,
    NOW,
    PARTIAL,
    PAST,
    STARTED,
    STATE_COLUMNS,
    Engine,
    Running,
    next_start,
    run,
)
from pd_planner.des.model import BUSY_COLUMNS, NOBODY, EngineLimits, Ints, Jobs, Launching, StepCosts, Times
from pd_planner.des.steps import WORK_COLUMNS
from pd_simulator.kv_blocks import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Written:
    """A token that matters: the first (`last` is False) or the last one of a request, and when it was written (s)."""

    at: float
    request: int
    last: bool


class OnlineEngine:
    """Room for `capacity` requests; `request` is the caller's number of a request.

    Attributes:
        next_start: when its next step begins, s; infinite if it has nothing to do.
    """

    def __init__(self, costs: StepCosts, limits: EngineLimits, launching: Launching, capacity: int) -> None:
        self._jobs = Jobs(
            np.full(capacity, np.inf),
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int64),
            np.zeros(capacity),
        )
        self._requests = np.zeros(capacity, np.int64)
        self._times = Times(np.full(capacity, np.nan), np.full(capacity, np.nan), np.zeros(capacity, np.int64))
        self.busy = np.zeros(BUSY_COLUMNS)
        self._clock = np.zeros(CLOCK_COLUMNS)
        self._state = np.zeros(STATE_COLUMNS, np.int64)
        self._state[PARTIAL] = NOBODY
        work, over = np.zeros(WORK_COLUMNS), np.zeros(capacity, np.int64)
        running = Running(
            *(np.zeros(size, np.int64) for size in (capacity, capacity, capacity, capacity, BLOCK_TOKENS))
        )
        self._engine = Engine(
            self._jobs, costs, limits, launching, self._times, self.busy, self._clock, self._state, work, over, running
        )
        self._ends = np.zeros((capacity, 2), np.int64)
        self._count = np.zeros(1, np.int64)
        self._started = self._done = 0
        self.next_start = np.inf

    def add(
        self, request: int, ready: float, prompt: int, output: int, *, external: int = 0, stall: float = 0.0
    ) -> None:
        """A request that the engine sees from `ready` (s) on; `external` and `stall` as in `Jobs`."""
        place, known = int(self._state[KNOWN]), int(self._state[KNOWN])
        while place > self._state[ARRIVED] and self._jobs.ready[place - 1] > ready:
            place -= 1
        for column, value in zip(
            (*self._jobs, self._requests), (ready, prompt, output, external, stall, request), strict=True
        ):
            if place < known:
                column[place + 1 : known + 1] = column[place:known].copy()
            column[place] = value
        self._state[KNOWN] += 1
        # While it works, its next step begins when the one before ends.
        self.next_start = min(self.next_start, max(ready, float(self._clock[NOW])))

    @property
    def preempted(self) -> tuple[Ints, Ints]:
        """Requests, by the caller's numbers, and how often each was preempted."""
        known = self._state[KNOWN]
        return self._requests[:known], self._times.preempted[:known]

    def run(self, until: float) -> list[Written]:
        """Take all steps that begin before `until`; the tokens that they write may come later than that."""
        if self.next_start >= until:
            return []
        self.next_start = _run(self._engine, self._ends, self._count, until)
        return list(self._news())

    def _news(self) -> Iterator[Written]:
        """Tokens of which it is known when the client has them; those of the last step wait for the next one, if there is any."""
        first, last, _ = self._times
        idle = self._state[DECODING] == 0 and self._state[PARTIAL] == NOBODY
        while self._started < self._state[STARTED if idle else FRESH]:
            yield Written(float(first[self._started]), int(self._requests[self._started]), last=False)
            self._started += 1
        while self._done < self._state[DONE if idle else PAST]:
            job = self._engine.over[self._done]
            yield Written(float(last[job]), int(self._requests[job]), last=True)
            self._done += 1


@compiled
def _run(engine: Engine, saved: Ints, count: Ints, until: float) -> float:
    """`decoding.run` on state that stays in arrays between the calls; `saved` has `count` entries of the heap of ends.

    Returns when the next step begins; infinite if there is nothing to do.
    """
    ends = [(0, 0)]
    ends.pop()
    for entry in range(count[0]):
        heappush(ends, (int(saved[entry, 0]), int(saved[entry, 1])))
    run(engine, ends, until)
    count[0] = len(ends)
    for entry in range(len(ends)):
        step, job = heappop(ends)
        saved[entry, 0], saved[entry, 1] = step, job
    return next_start(engine) if engine.state[DONE] < engine.state[KNOWN] else np.inf
