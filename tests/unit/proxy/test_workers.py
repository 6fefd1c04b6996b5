"""How the parts of a proxy of several processes judge and choose, without any process."""

import asyncio
import errno
import socket
from typing import Any

import pytest
from support.engines import engine

from pd_contracts.names import Role
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import State
from pd_proxy.errors import RestartedError, StalledError
from pd_proxy.metrics import Numbers
from pd_proxy.processes import relief
from pd_proxy.processes.channel import EngineReport, News, Report
from pd_proxy.processes.handover import Handover
from pd_proxy.processes.parent import PooledFlights
from pd_proxy.processes.shared_counters import Cell, SharedCounters
from pd_proxy.processes.shared_parts import ProcessCounters, SharedBudget, Turns
from pd_proxy.processes.worker_context import worker_context
from pd_proxy.processes.worker_process import WorkerProcess
from pd_proxy.processes.worker_reports import WorkerReports
from pd_proxy.settings import Settings
from pd_proxy.upstream.flights import Verdict

LIMIT = 10.0


def report(at: float, last_progress: float, *waits: tuple[float, bool]) -> Report:
    """Of a worker with these requests at engine 1."""
    one = EngineReport(
        address=engine(Role.COMBINED, 1).http_address,
        requests=1,
        failures=0,
        last_progress=last_progress,
        waits=list(waits),
    )
    return Report(at=at, numbers=Numbers(), engines=[one], samples=[])


def judged(*reports: Report) -> Verdict:
    """What the parent makes of its workers' reports at time 100."""
    shared, reported = SharedCounters.create(3), WorkerReports()
    for number, one in enumerate(reports, start=1):
        reported.take(number, one)
    found = PooledFlights(ProcessCounters(shared, 0), reported).verdict(engine(Role.COMBINED, 1), 100.0, LIMIT)
    shared.close()
    return found


def test_an_engine_stands_still_only_if_no_worker_sees_it_move() -> None:
    stuck = (20.0, False)
    assert judged() is Verdict.MOVING
    assert judged(report(100.0, 0.0, stuck)) is Verdict.STALLED
    assert judged(report(100.0, 0.0, stuck), report(100.0, 95.0)) is Verdict.MOVING
    assert judged(report(100.0, 0.0, stuck), report(100.0, 80.0, stuck)) is Verdict.STALLED
    assert judged(report(100.0, 0.0, stuck), report(100.0, 0.0, (20.0, True))) is Verdict.DOUBTFUL


def test_what_a_worker_has_not_reported_yet_speaks_for_the_engine() -> None:
    waits = (85.0, False)
    assert judged(report(100.0, 0.0, waits)) is Verdict.STALLED
    assert judged(report(94.0, 0.0, waits)) is Verdict.MOVING


def two_processes() -> tuple[SharedCounters, ProcessCounters, ProcessCounters]:
    """Two processes that know the same engines."""
    shared = SharedCounters.create(3)
    one, other = ProcessCounters(shared, 1), ProcessCounters(shared, 2)
    for counters in (one, other):
        counters.slots.adopt({1: 1, 2: 2})
    return shared, one, other


def test_room_is_taken_from_all_and_given_back_to_all() -> None:
    shared, one, other = two_processes()
    mine, theirs = SharedBudget(150, 1, one), SharedBudget(150, 1, other)
    prefill, decode = engine(Role.PREFILL, 1), engine(Role.DECODE, 2)
    claim = mine.take(Pair(prefill, decode), 100)
    assert claim is not None
    assert theirs.take(Pair(prefill, decode), 100) is None
    assert (theirs.claimed(decode), theirs.claimed(prefill)) == (100, 0)
    assert (theirs.handovers(decode), theirs.handovers(prefill)) == (1, 1)
    claim.release()
    claim.release()
    assert theirs.take(Pair(prefill, decode), 100) is not None
    assert mine.claimed(decode) == 100
    shared.close()


async def test_requests_of_all_processes_wait_in_one_queue_for_room() -> None:
    shared, one, other = two_processes()
    mine, theirs = SharedBudget(150, 1, one), SharedBudget(150, 1, other)
    pair = Pair(engine(Role.PREFILL, 1), engine(Role.DECODE, 2))
    running = mine.claim(pair, 100)
    async with mine.turn:
        assert mine.take(pair, 100) is None
        async with theirs.turn:
            assert theirs.take(pair, 10) is None, "there is room, but somebody waits already"
            running.release()
            assert mine.take(pair, 100) is not None
    async with theirs.turn:
        assert theirs.take(pair, 10) is not None
    shared.close()


def test_turns_go_round_over_processes() -> None:
    shared, one, other = two_processes()
    mine, theirs = Turns(one), Turns(other)
    assert [next(mine), next(theirs), next(theirs), next(mine)] == [0, 1, 2, 3]
    shared.close()


async def test_news_end_what_the_parent_has_given_up() -> None:
    shared, counters, _ = two_processes()
    context = worker_context(Settings(), counters, lambda _: None, 0.0)
    both = (engine(Role.COMBINED, 1), engine(Role.COMBINED, 2))
    context.take(News(instances=both, verdicts=(), slots={1: 1, 2: 2}))
    flights = [context.flights.open(one) for one in both]
    assert [context.flights.load(one) for one in both] == [1, 1]
    wedged = engine(Role.COMBINED, 1, state=State.SUSPECT)
    context.take(News(instances=(wedged,), verdicts=(), slots={1: 1}))
    assert [type(flight.failure) for flight in flights] == [StalledError, RestartedError]
    assert context.registry.current(engine(Role.COMBINED, 1)) == wedged
    assert context.registry.current(engine(Role.COMBINED, 2)) is None
    flights[0].land()
    flights[0].land()
    assert shared.total(counters.column(wedged, Cell.FLIGHTS)) == 0
    await asyncio.sleep(0)
    shared.close()


async def test_news_that_a_prefill_stands_still_do_not_cut_it_off() -> None:
    shared, counters, _ = two_processes()
    context = worker_context(Settings(), counters, lambda _: None, 0.0)
    context.take(News(instances=(engine(Role.PREFILL, 1),), verdicts=(), slots={1: 1}))
    flight = context.flights.open(engine(Role.PREFILL, 1))
    context.take(News(instances=(engine(Role.PREFILL, 1, state=State.SUSPECT),), verdicts=(), slots={1: 1}))
    assert flight.failure is None
    shared.close()


class Listener(socket.socket):
    """A listening socket of a process that has no more descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.asked = 0

    def accept(self) -> Any:
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_parent_without_descriptors_waits_until_its_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker(WorkerProcess):
        def speaks(self, now: float, patience_s: float) -> bool:  # noqa: ARG002  the interface
            return self.handover is not None

    monkeypatch.setattr(relief, "LOOK_S", 3600.0)
    handover = Handover()
    with Listener() as listener, socket.socket() as other, socket.create_connection(listener.getsockname()):
        silent, able = Worker(1, listener), Worker(2, other)
        silent.has_served, able.handover = True, handover
        watching = asyncio.create_task(relief.Relief([silent, able]).run())
        for _ in range(100):
            await asyncio.sleep(0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        handover.close()
    assert listener.asked == 1
