"""Sends planned requests when they are due, each in a greenlet of its own: an open loop, whatever the server does.

Where the plan is paced by answers (a closed loop, batches), a request is due when its turn has come.
"""

import gc
import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import gevent
from gevent import GreenletExit
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from gevent.pool import Pool as Crowd

from pd_contracts.records import Failure
from pd_loadgen.client.address import Target
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.live.sending.connecting import TransportError
from pd_loadgen.live.sending.kernel_stamps import Stamps
from pd_loadgen.live.sending.transport import Pool
from pd_loadgen.live.sending.yielding import after_a_look
from pd_loadgen.workload.plan import Planned

# The loop's timers overshoot by up to 1 ms, so the last part of a wait is spent looking at the clock and at the sockets in turn.
SPIN_S: Final = 0.0015
WARMUP_CONCURRENCY: Final = 4


class Sender:
    """Sends, and hands every request that ended to `done`, once.

    Attributes:
        started, ended, failed: requests of the window so far; failed counts what failed below the stream or has a bad status.
        late: those that were sent later than the limit.
        lags: how late each of them was sent, in seconds.
        last_end: when the last of them ended.
    """

    def __init__(
        self,
        target: Target,
        done: Callable[[Planned, Exchange], None],
        *,
        timeout: float,
        limit_s: float = math.inf,
        think_s: float = 0.0,
        answer: Callable[[Exchange], str | None] = lambda _: None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Resolve the target's name. `context` is there for https, and what is sent later than `limit_s` counts as late.
        The next turn of a conversation is due `think_s` seconds after the end of the one before, whose text `answer` reads.

        Raises:
            TransportError: if it has no address.
        """
        self.started = self.ended = self.failed = self.late = 0
        self._limit_s, self._think_s, self._answer = limit_s, think_s, answer
        self.lags: list[float] = []
        self.last_end: float | None = None
        self._pool, self._timeout, self._done = Pool(target, context), timeout, done
        self._group = Group()
        self._stopping = Event()

    @property
    def stamps(self) -> Stamps:
        return self._pool.stamps

    def warm_up(self, requests: Sequence[Planned]) -> None:
        """Send warm-ups, a few at a time, and wait for all."""
        crowd = Crowd(WARMUP_CONCURRENCY)
        for planned in requests:
            if not self._stopping.is_set():
                crowd.spawn(lambda planned=planned: self._one(planned, now := time.monotonic(), now))
        self._group = crowd
        crowd.join()
        self._group = Group()

    def offer(self, requests: Sequence[Planned], start: float, *, paced: bool = False, at_most: int = 0) -> bool:
        """Send each request at start + its offset, then wait for the answers; False if it was stopped before all had ended.

        Args:
            requests: in the order of their offsets.
            start: monotonic seconds.
            paced: requests are due once the group before has ended and a place is free, and not at an offset.
            at_most: places: requests in flight at a time; 0 is no limit. A request of an open loop that waits for a place was
                scheduled all the same, so the wait is part of its latency, but not of the client's lag.
        """
        places = BoundedSemaphore(at_most) if at_most else None
        group = 0
        for planned in requests:
            if planned.group != group:
                self._group.join()
                group = planned.group
            if not self._wait_until(start + planned.offset) or not self._take(places):
                break
            now = time.monotonic()
            due = now if paced else start + planned.offset
            self.started += 1
            self._group.spawn(self._one, planned, due, now if places else due, places)
            if paced:
                after_a_look()  # it leaves before the next one becomes due, and sockets are served in between
        self._group.join()
        return not self._stopping.is_set()

    def _take(self, places: BoundedSemaphore | None) -> bool:
        """Wait for a place; false if the run is being stopped, which frees them all."""
        if places is not None:
            places.acquire()
        return not self._stopping.is_set()

    def stop(self) -> None:
        """Send nothing more and end what is in flight as aborted."""
        self._stopping.set()
        gevent.sleep(0)  # a greenlet killed before its first step would leave no record
        self._group.kill(block=False)

    def close(self) -> None:
        self._pool.close()

    def _wait_until(self, due: float) -> bool:
        while (left := due - time.monotonic()) > SPIN_S:
            self._stopping.wait(left - SPIN_S)
            if self._stopping.is_set():
                return False
        while time.monotonic() < due:
            after_a_look()
        return not self._stopping.is_set()

    def _one(self, planned: Planned, due: float, free: float, places: BoundedSemaphore | None = None) -> None:
        """Send one request that was due, and could go from `free` on, and the turns after it; then give its place back."""
        try:
            exchange = self._exchange(planned, due, free)
            while planned.then is not None and not self._stopping.is_set():
                answer = self._answer(exchange) if exchange.failure is None else None
                if answer is None:
                    self._give_up(planned)
                    break
                planned = planned.then(answer)
                due = (exchange.end or due) + self._think_s
                if not self._wait_until(due):
                    break
                self.started += 1
                exchange = self._exchange(planned, due, due)
        finally:
            if places is not None:
                places.release()

    def _exchange(self, planned: Planned, due: float, free: float) -> Exchange:
        exchange, began = Exchange(due), time.monotonic()
        try:
            with self._pool.connection() as connection:
                # a new connection takes the network's time and the peer's, which is no lateness of the client
                free += time.monotonic() - began
                connection.run(planned.wire, exchange, self._timeout)
        except TransportError as error:
            exchange.failure = error.failure
        except GreenletExit:
            # the run was stopped: this request ends here and is recorded as such
            exchange.failure = Failure(kind="aborted", message="the run was stopped before the answer was complete")
        if exchange.end is None:  # there was no last byte
            exchange.end = time.monotonic()
        if not planned.warmup:
            self._count(exchange, free)
        self._done(planned, exchange)
        return exchange

    def _give_up(self, planned: Planned) -> None:
        """Without an answer the conversation cannot go on: its other turns have failed, and count."""
        while planned.then is not None:
            planned = planned.then("")
            now = time.monotonic()
            failure = Failure(kind="aborted", message="the turn before it was not answered")
            exchange = Exchange(now, end=now, failure=failure)
            self.started += 1
            self._count(exchange, now)
            self._done(planned, exchange)

    def _count(self, exchange: Exchange, free: float) -> None:
        self.ended += 1
        self.failed += exchange.failure is not None or exchange.head is None or exchange.head.status != 200
        self.last_end = exchange.end
        if exchange.sent is not None:
            self.lags.append(exchange.sent - free)
            self.late += self.lags[-1] > self._limit_s


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector away: a full collection stops the loop for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
