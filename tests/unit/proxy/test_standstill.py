"""Which engines get new requests only if there is no other."""

import pytest
from support.engines import engine

from pd_contracts.names import Role
from pd_proxy.upstream.flights import Flights
from pd_proxy.upstream.standstill import Standstill

LIMIT_S = 10.0
NOW = 1000.0


@pytest.mark.parametrize(
    ("role", "whole", "waited", "moved", "avoided"),
    [
        (Role.COMBINED, False, 11.0, 11.0, True),
        (Role.DECODE, False, 11.0, 11.0, True),
        (Role.DECODE, False, 9.0, 500.0, False),
        (Role.DECODE, False, 500.0, 9.0, False),
        (Role.COMBINED, True, 500.0, 500.0, False),
        (Role.PREFILL, True, 11.0, 11.0, True),
        (Role.PREFILL, True, 9.0, 500.0, False),
        (Role.PREFILL, True, 500.0, 1.0, False),
    ],
    ids=[
        "a stream waits",
        "a stream waits for decode",
        "it has just been sent there",
        "another request got something",
        "an answer in one piece takes long",
        "prefill finishes nothing",
        "prefill has just been asked",
        "prefill has finished another request",
    ],
)
async def test_an_engine_is_avoided_if_its_requests_get_nothing(
    role: Role, whole: bool, waited: float, moved: float, avoided: bool
) -> None:
    flights, one = Flights(), engine(role)
    flight = flights.open(one, whole=whole)
    flight.since, flight.tally.last_progress = NOW - waited, NOW - moved
    assert Standstill(flights, LIMIT_S).engines(NOW) == ({one.incarnation} if avoided else set())
    assert not Standstill(flights, 0.0).engines(NOW)
    flight.land()
    assert not Standstill(flights, LIMIT_S).engines(NOW)


async def test_a_decode_that_waits_for_prefill_is_not_avoided() -> None:
    flights, one = Flights(), engine(Role.DECODE)
    flight = flights.open(one)
    flight.early = True
    flight.waits()
    assert not Standstill(flights, LIMIT_S).engines(NOW + 1e9)


async def test_engines_are_looked_at_now_and_then_not_for_each_request() -> None:
    flights = Flights()
    one, other = engine(Role.DECODE, 1), engine(Role.DECODE, 2)
    flight = flights.open(one)
    flights.open(other).since = None
    flight.since = NOW - LIMIT_S
    standstill = Standstill(flights, LIMIT_S)
    assert standstill.engines(NOW) == {1}
    flight.tally.last_progress = NOW
    assert standstill.engines(NOW) == {1}
    assert not standstill.engines(NOW + LIMIT_S / 10)
