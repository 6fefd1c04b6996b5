"""The shared memory of processes: slots, rows, the queue and the debt log, as another process that maps it sees them."""

import os
from collections.abc import Iterator

import msgspec
import pytest

from pd_proxy.kv.debts import Debt
from pd_proxy.kv.transfer import stand_in
from pd_proxy.processes.debt_log import LOG_BYTES, RECORD_BYTES, RECORDS, DebtLog
from pd_proxy.processes.shared_counters import Cell, EngineSlots, Head, SharedCounters, ahead, column
from pd_proxy.protocol.endpoints import Endpoint


@pytest.fixture(name="shared")
def _shared() -> Iterator[SharedCounters]:
    shared = SharedCounters.create(3)
    yield shared
    shared.close()


@pytest.fixture(name="other")
def _other(shared: SharedCounters) -> Iterator[SharedCounters]:
    """The same memory in another process."""
    other = SharedCounters(os.dup(shared.descriptor), 3)
    yield other
    other.close()


def test_what_one_process_counts_another_one_adds_up(shared: SharedCounters, other: SharedCounters) -> None:
    mine, theirs = column(7, Cell.CLAIMED), column(8, Cell.CLAIMED)
    shared.rows[1][mine] += 1 << 40
    other.rows[2][mine] += 5
    assert (shared.total(mine), other.total(mine), other.total(theirs)) == ((1 << 40) + 5, (1 << 40) + 5, 0)
    assert not shared.idle(7)
    assert shared.idle(8)
    shared.clear(1)
    assert other.total(mine) == 5


def test_no_two_numbers_share_a_place() -> None:
    places = [*Head, *(column(slot, cell) for slot in range(50) for cell in Cell)]
    assert sorted(places) == list(range(len(places)))


def test_a_slot_is_free_again_when_its_engine_is_gone_and_nothing_is_counted_there() -> None:
    slots, busy = EngineSlots(count=4), set[int]()
    first = slots.assign([10, 11], idle=lambda slot: slot not in busy)
    assert len({*first.values()} - {0}) == 2
    busy.add(first[10])
    second = slots.assign([11, 12], idle=lambda slot: slot not in busy)
    assert second[11] == first[11]
    assert second[12] not in first.values()
    assert slots.of(10) == first[10], "something is still counted there"
    assert slots.assign([11, 12, 13], idle=lambda slot: slot not in busy)[13] == 0, "there is no slot left"
    busy.clear()
    assert slots.assign([11, 12, 13], idle=lambda slot: slot not in busy)[13] == first[10]


def test_an_adopted_slot_is_as_good() -> None:
    slots = EngineSlots()
    slots.adopt({5: 3})
    assert (slots.of(5), slots.of(6)) == (3, 0)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ((100, 1000), (0, 1000), False),
        ((100, 1000), (99, 1000), True),
        ((100, 1000), (101, 1000), False),
        ((100, 1000), (99, 900), False),
    ],
    ids=["nobody else waits", "somebody came before", "somebody came after", "who came before looks no more"],
)
def test_the_process_that_has_queued_longest_goes_first(
    shared: SharedCounters, mine: tuple[int, int], theirs: tuple[int, int], expected: bool
) -> None:
    for row, (since, looked) in zip(shared.rows, (mine, theirs), strict=False):
        row[Head.QUEUED_SINCE], row[Head.LOOKED_AT] = since, looked
    assert ahead(shared.rows, shared.rows[0], patience_ns=100) is expected


def test_the_debt_log_of_a_process_can_be_read_after_its_end(shared: SharedCounters, other: SharedCounters) -> None:
    debt = Debt(
        "10.0.0.1:21001",
        "/v1/completions",
        "___prefill_addr_x",
        stand_in(Endpoint.COMPLETIONS, {"model": msgspec.Raw(b'"m"')}),
    )
    log = shared.debt_log(1)
    first, second = log.write(b"settled"), log.write(msgspec.json.encode(debt))
    assert first is not None
    assert second is not None
    log.erase(first)
    (entry,) = other.debt_log(1).entries()
    assert msgspec.json.decode(entry, type=Debt) == debt
    assert not other.debt_log(2).entries()
    other.debt_log(1).clear()
    assert not log.entries()


def test_the_debt_log_takes_what_it_has_room_for() -> None:
    log = DebtLog(memoryview(bytearray(LOG_BYTES)))
    assert log.write(b"x" * (RECORD_BYTES + 1)) is None
    numbers = [log.write(b"x" * RECORD_BYTES) for _ in range(RECORDS)]
    assert None not in numbers
    assert log.write(b"one more") is None
    log.erase(numbers[17] or 0)
    assert log.write(b"one more") == numbers[17]
    assert len(log.entries()) == RECORDS
