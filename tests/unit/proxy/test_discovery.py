"""Judging messages at the port for pings."""

import asyncio
import logging

import pytest
import zmq
from support.proxy import settings

from pd_proxy.discovery.pings import MAX_LOGGED_SOURCES, Discovery, Refusals, believer_of, is_own
from pd_proxy.engines.registry import PingRefusedError


async def test_a_flood_leaves_time_for_others() -> None:
    discovery = Discovery("tcp://127.0.0.1:1", believer_of(settings(), lambda _: False), lambda _: None, lambda _: None)

    class Flood:
        """Always has a message waiting, which zmq.asyncio returns without giving up the event loop."""

        async def recv_multipart(self, *, copy: bool) -> list[zmq.Frame]:
            assert not copy
            return [zmq.Frame(b"x"), zmq.Frame(b"y")]

    discovery._socket = Flood()  # type: ignore[assignment]
    flooded = asyncio.create_task(discovery.run())
    for _ in range(3):
        await asyncio.sleep(0)
    flooded.cancel()
    await asyncio.gather(flooded, return_exceptions=True)
    discovery._socket = None
    discovery.close()


def test_refusals_are_all_counted_but_logged_in_bounded_number(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[str] = []
    refusals = Refusals(counted.append)
    with caplog.at_level(logging.WARNING):
        for number in range(MAX_LOGGED_SOURCES + 500):
            for _ in range(2):
                refusals(str(number).encode(), PingRefusedError("malformed", "m"))
    assert len(counted) == 2 * (MAX_LOGGED_SOURCES + 500)
    assert len(caplog.records) == MAX_LOGGED_SOURCES


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", True),
        ("localhost", True),
        ("192.0.2.1", False),
        ("nosuchhost.invalid", False),
        ("1.2.3.4.5", False),
    ],
)
def test_a_hosts_own_addresses_are_those_that_it_can_bind(host: str, own: bool) -> None:
    assert is_own(host) is own
