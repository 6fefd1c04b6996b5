"""Flights, room for KV and counts of one of several processes: kept as in a single process, and also in the shared counters."""

import asyncio
from collections.abc import Iterator
from time import monotonic_ns
from typing import Final

import msgspec

from pd_proxy.engines.pairing import Pair, Route, Solo
from pd_proxy.engines.registry import Instance
from pd_proxy.kv.budget import Budget, Claim, ends
from pd_proxy.kv.debts import Debt
from pd_proxy.kv.transfer import Plan
from pd_proxy.metrics import Metrics
from pd_proxy.processes.shared_counters import Cell, EngineSlots, Head, SharedCounters, ahead, column
from pd_proxy.upstream.flights import Flight, Flights, Tally

# Other processes free room without telling, so a process that waits for room looks this often.
LOOK_S: Final = 0.005
# A process at the head of the queue that has not looked for this long does not hold up the others.
PATIENCE_NS: Final = 250_000_000


class ProcessCounters:
    """One process's part of the shared memory, and the totals of all."""

    def __init__(self, shared: SharedCounters, number: int) -> None:
        """`number` is the number of the process's row."""
        self.shared = shared
        self.row = shared.rows[number]
        self.debt_log = shared.debt_log(number)
        self.slots = EngineSlots()

    def column(self, instance: Instance, cell: Cell) -> int:
        """The index of an engine's cell in every row."""
        return column(self.slots.of(instance.incarnation), cell)

    def total(self, instance: Instance, cell: Cell) -> int:
        """The sum of an engine's cell over all processes."""
        return self.shared.total(self.column(instance, cell))


class Turns(Iterator[int]):
    """Turn numbers for the policies. Two processes that ask at the same moment may get the same number, which does no harm."""

    def __init__(self, counters: ProcessCounters) -> None:
        self._counters = counters

    def __next__(self) -> int:
        turn = self._counters.shared.total(Head.TURNS)
        self._counters.row[Head.TURNS] += 1
        return turn


class SharedFlight(Flight):
    """A flight that is also counted in the shared memory."""

    __slots__ = ("_column", "_counters")

    def __init__(self, instance: Instance, tally: Tally, counters: ProcessCounters, *, whole: bool) -> None:
        super().__init__(instance, tally, whole=whole)
        self._counters = counters
        self._column = counters.column(instance, Cell.FLIGHTS)
        counters.row[self._column] += 1

    def land(self, *, failed: bool = False) -> None:
        if self in self.tally.flights:
            self._counters.row[self._column] -= 1
        super().land(failed=failed)


class SharedFlights(Flights):
    """This process's flights, and the number of all processes' flights."""

    def __init__(self, counters: ProcessCounters) -> None:
        super().__init__()
        self._counters = counters

    def open(self, instance: Instance, *, whole: bool = False) -> Flight:
        return SharedFlight(instance, self.tally(instance), self._counters, whole=whole)

    def load(self, instance: Instance) -> int:
        """The requests of all processes at an engine."""
        return self._counters.total(instance, Cell.FLIGHTS)


class SharedClaim(Claim):
    """A claim that all processes see; engines are given as slots. The KV that it covers is in the debt log until it is released."""

    __slots__ = ("_counters", "_record")

    def __init__(self, budget: Budget, prefill: int, decode: int, size: int, counters: ProcessCounters) -> None:
        """Use `Budget.claim`."""
        super().__init__(budget, prefill, decode, size)
        self._counters = counters
        self._record: int | None = None

    def covers(self, pair: Pair, plan: Plan) -> None:
        """Record the debt that there would be if this process died now."""
        if plan.stand_in is not None:
            debt = Debt(pair.decode.zmq_address, plan.endpoint, plan.engine_id, plan.stand_in())
            self._record = self._counters.debt_log.write(msgspec.json.encode(debt))

    def release(self) -> None:
        super().release()
        record, self._record = self._record, None
        if record is not None:
            self._counters.debt_log.erase(record)


class _Turn(asyncio.Lock):
    """The queue of this process; the shared counters hold since when it has waited."""

    def __init__(self, counters: ProcessCounters) -> None:
        super().__init__()
        self._row = counters.row

    async def acquire(self) -> bool:  # type: ignore[override]  # typeshed: Literal[True]
        await super().acquire()
        self._row[Head.QUEUED_SINCE] = monotonic_ns()
        return True

    def release(self) -> None:
        self._row[Head.QUEUED_SINCE] = 0
        super().release()


class SharedBudget(Budget):
    """One limit for all processes. Each has a queue, and of the requests at their heads the one that has been there longest goes first."""

    def __init__(self, limit: int, bytes_per_token: int, counters: ProcessCounters) -> None:
        super().__init__(limit, bytes_per_token, _Turn(counters))
        self._counters = counters

    def claimed(self, instance: Instance) -> int:
        """Bytes on their way to an engine, from all processes."""
        return self._counters.total(instance, Cell.CLAIMED)

    def handovers(self, instance: Instance) -> int:
        """Claims of all processes that involve an engine."""
        return self._counters.total(instance, Cell.HANDOVERS)

    def take(self, route: Route, size: int) -> Claim | None:
        """As `Budget.take`, under the lock, so that no other process takes the same room."""
        with self._counters.shared.locked():
            self._counters.row[Head.LOOKED_AT] = monotonic_ns()
            if ahead(self._counters.shared.rows, self._counters.row, PATIENCE_NS):
                return None
            return super().take(route, size)

    def claim(self, route: Route, size: int) -> Claim:
        if isinstance(route, Solo):
            return Claim(self, 0, 0, 0)
        slots, row = self._counters.slots, self._counters.row
        prefill, decode = (slots.of(end.incarnation) for end in ends(route))
        row[column(decode, Cell.CLAIMED)] += size
        row[column(prefill, Cell.HANDOVERS)] += 1
        row[column(decode, Cell.HANDOVERS)] += 1
        return SharedClaim(self, prefill, decode, size, self._counters)

    def give_back(self, claim: Claim, size: int) -> None:
        row = self._counters.row
        row[column(claim.decode, Cell.CLAIMED)] -= size
        row[column(claim.prefill, Cell.HANDOVERS)] -= 1
        row[column(claim.decode, Cell.HANDOVERS)] -= 1

    async def released(self) -> None:
        await asyncio.sleep(LOOK_S)


class SharedMetrics(Metrics):
    """A process's own metrics; its requests are also counted in the shared memory."""

    def __init__(self, counters: ProcessCounters) -> None:
        super().__init__(tuple, lambda _: 0)
        self._counters = counters

    def started(self) -> None:
        super().started()
        self._counters.row[Head.IN_FLIGHT] = self.in_flight
        self._counters.row[Head.REQUESTS] = self.total

    def ended(self, endpoint: str, status: int, cause: str, *, fault: bool) -> None:
        super().ended(endpoint, status, cause, fault=fault)
        self._counters.row[Head.IN_FLIGHT] = self.in_flight

    def at_once(self) -> int:
        """Requests in flight in all processes. The lock makes the later of two simultaneous requests see both."""
        with self._counters.shared.locked():
            return self._counters.shared.total(Head.IN_FLIGHT)
