"""What operators see: every metric that the README names, and versions."""

import asyncio
import re

import pytest
from support.aio import until
from support.proxy import MODEL, FakeEngine, RawClient, RunningProxy, failing, running_proxy
from support.simulator import fast_profile, running, settings_for

from pd_contracts.names import Connector, Role
from pd_proxy import __version__

TEXT = {"model": MODEL, "prompt": list(range(100)), "max_tokens": 2}


async def metrics(proxy: RunningProxy) -> dict[str, float]:
    """Every series with its value."""
    lines = (await proxy.get("/metrics")).body.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def test_retries_are_counted_by_what_had_failed() -> None:
    async with running_proxy() as proxy:
        bad = await proxy.engine(Role.COMBINED, boot_id="boot-1", answer=failing(500))
        await proxy.engine(Role.COMBINED, boot_id="boot-2")
        for _ in range(2):
            assert (await proxy.post(TEXT)).status == 200
        seen = await metrics(proxy)
        assert seen['pd_proxy_retries_total{cause="refused"}'] == len(bad.calls) > 0
        assert seen['pd_proxy_requests_total{endpoint="/v1/completions",status="200"}'] == 2


async def test_kv_on_its_way_is_shown_by_decode_and_gone_when_it_has_arrived() -> None:
    async with running_proxy(kv_bytes_per_token=10) as proxy:
        prefill, _ = await proxy.pair()
        prefill.gate.clear()
        asked = asyncio.create_task(proxy.post(TEXT))
        await until(lambda: prefill.calls)
        assert (await metrics(proxy))['pd_proxy_kv_in_flight_bytes{instance="decode-0"}'] == 1000
        assert (await metrics(proxy))["pd_proxy_requests_in_flight"] == 1
        prefill.gate.set()
        assert (await asked).status == 200
        seen = await metrics(proxy)
        assert seen['pd_proxy_kv_in_flight_bytes{instance="decode-0"}'] == 0
        for stage in ("queue", "prefill", "kv_and_first_decode", "decode"):
            assert seen[f'pd_proxy_stage_seconds_count{{stage="{stage}"}}'] == 1


async def test_instances_are_counted_by_role_and_state() -> None:
    async with running_proxy(admin_key="secret") as proxy:
        _, decode = await proxy.pair()
        await proxy.start(FakeEngine(Role.DECODE, Connector.P2P_NCCL, boot_id="sick", health=500))
        await proxy.stats_where(lambda stats: len(stats.instances) == 3)
        await proxy.post({}, "/admin/instances/prefill-0/drain", Authorization="Bearer secret")
        decode.pings = False
        await proxy.stats_where(lambda stats: any(i.state == "lost" for i in stats.instances))
        seen = await metrics(proxy)
        counts = {name: value for name, value in seen.items() if name.startswith("pd_proxy_instances") and value}
        assert counts == {
            'pd_proxy_instances{role="prefill",state="draining"}': 1,
            'pd_proxy_instances{role="decode",state="joining"}': 1,
            'pd_proxy_instances{role="decode",state="lost"}': 1,
        }


async def test_canaries_that_fail_are_counted() -> None:
    async with running_proxy(canary=True, ping_ttl_s=10.0) as proxy:
        faults = {"sim_corrupt_kv": True, "proxy_port": proxy.settings.proxy_port}
        async with (
            running(settings_for(Role.PREFILL, **faults), fast_profile()),
            running(settings_for(Role.DECODE, **faults), fast_profile()),
        ):
            await proxy.stats_where(lambda stats: [pair.canary for pair in stats.pairs] == ["wrong"])
            assert (await metrics(proxy))['pd_proxy_canaries_total{verdict="wrong"}'] == 1


async def test_what_is_owed_to_a_decode_is_shown_until_it_is_settled() -> None:
    async with running_proxy() as proxy:
        _, decode = await proxy.pair()
        decode.gate.clear()
        client = await RawClient.send(proxy, TEXT)
        await until(lambda: decode.calls)
        await client.leave()
        await until(lambda: decode.calls[0].aborted)
        assert (await metrics(proxy))["pd_proxy_kv_owed"] == 1
        decode.gate.set()
        await proxy.stats_where(lambda stats: stats.drained == 1)
        seen = await metrics(proxy)
        assert (seen["pd_proxy_kv_owed"], seen['pd_proxy_drains_total{result="done"}']) == (0, 1)


async def test_versions_are_the_engines_own_beside_the_proxys() -> None:
    async with running_proxy(ping_ttl_s=10.0) as proxy:
        settings = settings_for(Role.COMBINED, proxy_port=proxy.settings.proxy_port)
        async with running(settings, fast_profile()) as simulator:
            await proxy.stats_where(lambda stats: stats.ready)
            await proxy.engine(Role.COMBINED, boot_id="says none")
            own = re.search(rb'"version": ?"([^"]+)"', (await simulator.get("/version"))[1])
            assert own is not None
            for _ in range(2):
                said = (await proxy.get("/version")).json
                assert said["version"] == __version__
                assert said["engines"] == {"combined-0": own[1].decode(), "combined-1": None}


@pytest.mark.parametrize("header", ["traceparent", "tracestate"])
async def test_the_trace_context_goes_on_as_it_came(header: str) -> None:
    async with running_proxy() as proxy:
        engines = await proxy.pair()
        value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert (await proxy.post(TEXT, **{header: value})).status == 200
        assert [call.headers[header] for engine in engines for call in engine.calls] == [value, value]
