"""Judging what arrives at the port for pings."""

import asyncio
import logging

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.discovery.pings import MAX_LOGGED_SOURCES, Discovery, Refusals, read_ping
from pd_proxy.engines.registry import PingRefusedError

PING = msgpack.dumps({"type": "P", "http_address": "10.0.0.1:8000", "zmq_address": "10.0.0.1:21001"})


def test_vllms_ping_is_read() -> None:
    assert read_ping([b"10.0.0.1:21001", PING]).http_address == "10.0.0.1:8000"


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_nothing_else_does_more_than_raise_the_one_error(frames: list[bytes]) -> None:
    with pytest.raises(PingRefusedError) as caught:
        read_ping(frames)
    assert caught.value.reason in {"frames", "malformed", "identity"}


@given(st.integers(0, len(PING) - 1))
def test_a_truncated_ping_is_malformed(length: int) -> None:
    with pytest.raises(PingRefusedError) as caught:
        read_ping([b"10.0.0.1:21001", PING[:length]])
    assert caught.value.reason == "malformed"


async def test_a_flood_leaves_time_for_others() -> None:
    discovery = Discovery("tcp://127.0.0.1:1", lambda _: None, lambda _: None)

    class Flood:
        """Always has a message waiting, which zmq.asyncio returns without giving up the event loop."""

        async def recv_multipart(self) -> list[bytes]:
            return [b"x", b"y"]

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
