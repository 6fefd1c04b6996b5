"""Clients on raw sockets that leave, and what happens to the engines' work and KV."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.aio import until
from support.proxy import STREAM, TEXT, RawClient, RunningProxy, running_proxy, whole_and_streamed

from pd_contracts.names import Connector, Role

LONG_STREAM = STREAM | {"max_tokens": 1000}
LONG_BODIES = whole_and_streamed(TEXT | {"max_tokens": 1000})


@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.NIXL])
@LONG_BODIES
async def test_a_client_that_leaves_during_prefill_leaves_no_kv_behind(
    proxy: RunningProxy, connector: Connector, body: dict[str, Any]
) -> None:
    prefill, decode = await proxy.pair(connector)
    prefill.gate.clear()
    client = await RawClient.send(proxy, body)
    await until(lambda: prefill.calls)
    await client.leave()
    await asyncio.sleep(0.2)
    assert not prefill.calls[0].aborted
    assert not decode.calls
    prefill.gate.set()
    await until(lambda: decode.calls and decode.calls[0].finished)  # the drain
    drain = decode.calls[0]
    assert (drain.body["max_tokens"], drain.body["stream"]) == (1, False)
    assert drain.engine_id == prefill.calls[0].engine_id
    assert ("kv_transfer_params" in drain.body) == (connector is Connector.NIXL)
    await proxy.settled()
    assert (await proxy.stats()).drained == 1


async def test_example_has_nothing_to_drain(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair(Connector.EXAMPLE)
    prefill.gate.clear()
    client = await RawClient.send(proxy, LONG_STREAM)
    await until(lambda: prefill.calls)
    await client.leave()
    await asyncio.sleep(0.1)
    prefill.gate.set()
    await until(lambda: prefill.calls[0].finished)
    await proxy.settled()
    assert not decode.calls


async def test_nothing_is_drained_after_a_prefill_that_failed_with_nobody_waiting(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    prefill.gate.clear()
    client = await RawClient.send(proxy, LONG_STREAM)
    await until(lambda: prefill.calls)
    await client.leave()
    await asyncio.sleep(0.1)
    prefill.boot_id = "boot-2"
    await until(lambda: prefill.calls[0].aborted)  # a restarted prefill has nothing to finish
    await proxy.settled()
    assert not decode.calls


@pytest.mark.parametrize("role", [Role.DECODE, Role.COMBINED])
async def test_a_client_that_leaves_during_decode_aborts_it_at_the_engine(proxy: RunningProxy, role: Role) -> None:
    await proxy.engine(Role.PREFILL)
    engine = await proxy.engine(role)
    client = await RawClient.send(proxy, STREAM | {"max_tokens": 1000000})
    await client.read_until(b"t5 ")
    await client.leave()
    await until(lambda: engine.calls[0].aborted)  # the abort
    await proxy.settled()
    assert len(engine.calls) == 1
    stats = await proxy.stats()
    assert (stats.failures, stats.in_flight, [i.failures for i in stats.instances]) == (
        0,
        0,
        [0] * len(stats.instances),
    )
    assert 'pd_proxy_failures_total{cause="client_left"} 1.0' in (await proxy.get("/metrics")).body.decode()


@LONG_BODIES
async def test_decode_is_not_aborted_before_it_surely_knows_the_request(
    proxy: RunningProxy, body: dict[str, Any]
) -> None:
    prefill, decode = await proxy.pair()
    decode.gate.clear()
    client = await RawClient.send(proxy, body)
    await until(lambda: decode.calls)
    await client.leave()
    await asyncio.sleep(0.1)
    assert not decode.calls[0].aborted, "within the grace time"
    await until(lambda: decode.calls[0].aborted)  # after the grace time
    assert len(decode.calls) == 1, "a second request under this id could wait for KV that is gone"
    decode.gate.set()
    await proxy.stats_where(lambda stats: stats.drained == 1)
    pushed, asked = ([call.engine_id for call in engine.calls] for engine in (prefill, decode))
    assert pushed == asked == [pushed[0], pushed[1], pushed[0]], "after a probe, what was pushed once more is used up"


async def test_decode_is_aborted_after_its_first_byte_without_waiting_out_the_grace_time() -> None:
    async with running_proxy(abort_grace_s=60.0) as proxy:
        _, decode = await proxy.pair()
        decode.gate.clear()
        client = await RawClient.send(proxy, STREAM | {"max_tokens": 1000000})
        await until(lambda: decode.calls)
        await client.leave()
        await asyncio.sleep(0.1)
        decode.gate.set()
        await until(lambda: decode.calls[0].aborted)


@LONG_BODIES
async def test_a_combined_engine_is_aborted_at_once(body: dict[str, Any]) -> None:
    async with running_proxy(abort_grace_s=60.0) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        client = await RawClient.send(proxy, body)
        await until(lambda: engine.calls)
        await client.leave()
        await until(lambda: engine.calls[0].aborted)


async def test_a_client_that_sends_half_a_request_and_leaves_is_forgotten(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt":')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert reader.at_eof() or not await reader.read()
    await proxy.settled()
    assert not engine.calls


@pytest.mark.parametrize("connector", list(Connector))
async def test_clients_that_leave_at_any_moment_leave_nothing_in_flight(
    proxy: RunningProxy, connector: Connector
) -> None:
    prefill, decode = await proxy.pair(connector)

    async def come_and_go(number: int) -> None:
        client = await RawClient.send(proxy, (STREAM if number % 2 else TEXT) | {"max_tokens": 50})
        await asyncio.sleep(number * 0.0005)
        await client.leave()

    await asyncio.gather(*(come_and_go(number) for number in range(60)))
    await proxy.settled()
    assert (await proxy.stats()).in_flight == 0
    await proxy.paid()
    pushed = Counter(call.engine_id for call in prefill.calls)
    if connector in (Connector.P2P_NCCL, Connector.NIXL):
        # Every KV that was pushed is asked for; requests that no client waits for do not count as in flight.
        await until(lambda: {call.engine_id for call in decode.calls} == pushed.keys())
    assert all(call.finished for call in prefill.calls), "no prefill was cancelled"
    asked = Counter(call.engine_id for call in decode.calls)
    assert asked <= pushed, "none of it more often than it was pushed"
