"""Pairs are shown to answer correctly before clients get answers from them."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.proxy import TEXT, FakeEngine, RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts.names import Connector, Role
from pd_contracts.stats import PairStats, ProxyStats
from pd_proxy.background.canary import Verdict, judge

BODY = {"prompt": list(range(40)), "max_tokens": 4, "ignore_eos": True}
KEY = {"Authorization": "Bearer secret"}
# A decode without memory for KV writes wrong tokens; P2pConnector's computes the KV again.
STOCK = {"kv_connector": Connector.P2P_NCCL}


@contextlib.asynccontextmanager
async def guarded(
    *engines: tuple[Role, dict[str, Any]], stall_s: float = 60.0
) -> AsyncIterator[tuple[RunningProxy, list[Simulator]]]:
    """A proxy that examines its pairs, and simulated engines, all healthy."""
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(
            running_proxy(canary=True, admin_key="secret", ping_ttl_s=10.0, decode_stall_timeout_s=stall_s)
        )
        simulators = []
        for role, fields in engines:
            settings = settings_for(role, proxy_port=proxy.settings.proxy_port, sim_leak_s=0.0, **fields)
            simulators.append(await stack.enter_async_context(running(settings, fast_profile())))
            await proxy.stats_where(lambda stats: sum(bool(i.model) for i in stats.instances) == len(simulators))
        yield proxy, simulators


async def examined(proxy: RunningProxy, count: int = 1) -> list[PairStats]:
    """The pairs, once all have a verdict."""

    def done(stats: ProxyStats) -> bool:
        return len(stats.pairs) == count and all(pair.canary != "unknown" for pair in stats.pairs)

    return (await proxy.stats_where(done)).pairs


@pytest.mark.parametrize("connector", list(Connector))
async def test_a_pair_that_answers_rightly_is_admitted_and_nothing_is_left_behind(
    connector: Connector, tmp_path: Path
) -> None:
    fields = {"kv_connector": connector, "kv_shared_path": str(tmp_path)}
    async with guarded((Role.PREFILL, fields), (Role.DECODE, fields)) as (proxy, engines):
        assert [pair.canary for pair in await examined(proxy)] == ["passed"]
        assert (await proxy.get("/ready")).status == 200
        assert (await proxy.post(BODY)).status == 200
        await proxy.settled()
        for engine in engines:
            books = await engine.books()
            assert (books["held"], books["waiting"], books["leaked"]) == (0, 0, 0)


@pytest.mark.parametrize("connector", [Connector.P2P, Connector.P2P_NCCL, Connector.NIXL])
async def test_a_pair_that_answers_wrongly_gets_no_requests_and_says_so(connector: Connector) -> None:
    bad = {"kv_connector": connector, "sim_corrupt_kv": True}
    async with guarded((Role.PREFILL, bad), (Role.DECODE, {"kv_connector": connector})) as (proxy, _):
        (pair,) = await examined(proxy)
        assert (pair.prefill, pair.decode, pair.canary) == ("prefill-0", "decode-0", "wrong")
        assert "decode wrote tokens" in pair.reason
        instances = (await proxy.stats()).instances
        assert {(i.state, i.reason) for i in instances} == {("joining", f"canary: {pair.reason}")}
        assert (await proxy.get("/ready")).status == 503
        reply = await proxy.post(BODY)
        assert reply.status == 503
        assert "canary" in reply.error["message"]
        assert 'pd_proxy_canaries_total{verdict="wrong"} 1.0' in (await proxy.get("/metrics")).body.decode()


@pytest.mark.parametrize(("connector", "transport"), [(Connector.P2P, "tcp"), (Connector.NIXL, "")])
async def test_a_pair_says_how_its_kv_goes(connector: Connector, transport: str) -> None:
    told = {"kv_connector": connector}
    async with guarded((Role.PREFILL, told), (Role.DECODE, told)) as (proxy, _):
        await examined(proxy)
        (pair,) = (await proxy.stats_where(lambda stats: stats.pairs[0].transport == transport)).pairs
        assert (pair.canary, pair.transport) == ("passed", transport)


async def test_only_the_wrong_pair_is_left_out() -> None:
    async with guarded((Role.PREFILL, {"sim_corrupt_kv": True}), (Role.PREFILL, {}), (Role.DECODE, {})) as (
        proxy,
        engines,
    ):
        verdicts = {pair.prefill: pair.canary for pair in await examined(proxy, 2)}
        assert verdicts == {"prefill-0": "wrong", "prefill-1": "passed"}
        sent = (await engines[0].books())["sent"]
        for _ in range(4):
            assert (await proxy.post(BODY)).status == 200
        assert (await engines[0].books())["sent"] == sent


async def test_a_restarted_engine_is_examined_anew() -> None:
    async with guarded((Role.PREFILL, STOCK)) as (proxy, _):
        settings = settings_for(Role.DECODE, proxy_port=proxy.settings.proxy_port, **STOCK)
        async with running(settings, fast_profile()) as decode:
            await decode.post("/sim/faults", {"out_of_memory": True})
            assert [pair.canary for pair in await examined(proxy)] == ["wrong"]
        async with running(settings, fast_profile()):
            await proxy.stats_where(lambda stats: [pair.canary for pair in stats.pairs] == ["passed"])
            assert (await proxy.post(BODY)).status == 200


async def test_a_pair_that_goes_wrong_later_is_found_on_demand() -> None:
    async with guarded((Role.PREFILL, STOCK), (Role.DECODE, STOCK)) as (proxy, (_, decode)):
        assert [pair.canary for pair in await examined(proxy)] == ["passed"]
        await decode.post("/sim/faults", {"out_of_memory": True})
        (found,) = (await proxy.post({}, "/admin/canary", **KEY)).json["pairs"]
        assert (found["prefill"], found["decode"], found["verdict"]) == ("prefill-0", "decode-0", "wrong")
        assert (await proxy.post(BODY)).status == 503
        await decode.post("/sim/faults", {})
        (found,) = (await proxy.post({}, "/admin/canary", **KEY)).json["pairs"]
        assert found["verdict"] == "passed"
        assert (await proxy.post(BODY)).status == 200


async def test_a_decode_that_had_stalled_gets_no_request_before_a_canary_has_passed_again() -> None:
    async with guarded((Role.PREFILL, STOCK), (Role.DECODE, STOCK), stall_s=0.4) as (proxy, (_, decode)):
        assert [pair.canary for pair in await examined(proxy)] == ["passed"]
        await decode.post("/sim/faults", {"stall": "after_first_token"})
        assert '"engine_stalled"' in (await proxy.post(BODY | {"stream": True})).events[-1]
        await proxy.stats_where(lambda stats: any(i.state == "suspect" for i in stats.instances))
        await decode.post("/sim/faults", {"out_of_memory": True})  # it moves again, but what it writes is wrong
        stats = await proxy.stats_where(lambda stats: [pair.canary for pair in stats.pairs] == ["wrong"])
        assert [i.state for i in stats.instances if i.role is Role.DECODE] == ["joining"]
        assert (await proxy.post(BODY)).status == 503
        await decode.post("/sim/faults", {})
        await proxy.post({}, "/admin/canary", **KEY)
        assert (await proxy.post(BODY)).status == 200


async def test_a_canary_that_fails_is_no_verdict_and_runs_again() -> None:
    async with guarded((Role.PREFILL, {}), (Role.DECODE, {"sim_faults": json.dumps({"status": 500})})) as (
        proxy,
        engines,
    ):
        await proxy.stats_where(lambda stats: [pair.canary for pair in stats.pairs] == ["unknown"])
        assert (await proxy.post(BODY)).status == 503
        await engines[1].post("/sim/faults", {})
        assert [pair.canary for pair in await examined(proxy)] == ["passed"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-"}])
async def test_admin_is_closed_without_its_key(headers: dict[str, str]) -> None:
    async with running_proxy(admin_key="secret") as proxy:
        assert (await proxy.post({}, "/admin/canary", **headers)).status == 403


async def test_admin_is_closed_to_all_if_no_key_is_set() -> None:
    async with running_proxy() as proxy:
        assert (await proxy.post({}, "/admin/canary", Authorization="Bearer ")).status == 403


async def test_without_canaries_a_healthy_pair_serves_at_once() -> None:
    async with running_proxy() as proxy:
        prefill: FakeEngine
        prefill, _ = await proxy.pair()
        assert [pair.canary for pair in (await proxy.stats()).pairs] == ["off"]
        assert not prefill.calls


def test_both_tokens_count() -> None:
    assert judge(1, 2, [1, 2, 3]).verdict is Verdict.PASSED
    assert judge(1, 2, [1, 9, 3]).verdict is Verdict.WRONG
    assert judge(1, 2, [9, 2, 3]).verdict is Verdict.WRONG
    assert judge(1, 2, [1]).verdict is Verdict.WRONG


AUTO = {"dtype": "auto", "kv_cache_dtype": "auto"}


@pytest.mark.parametrize("canary", [False, True])
@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.NIXL, Connector.EXAMPLE])
async def test_engines_that_were_started_unlike_exchange_no_kv(connector: Connector, canary: bool) -> None:
    async with running_proxy(canary=canary) as proxy:
        prefill = await proxy.start(FakeEngine(Role.PREFILL, connector, told={"alike": AUTO | {"tokenizer": "x"}}))
        decode = await proxy.start(FakeEngine(Role.DECODE, connector, told={"alike": AUTO | {"dtype": "half"}}))
        stats = await proxy.stats_where(lambda s: sum("dtype" in i.reason for i in s.instances) == 2)
        assert stats.instances[0].reason == (
            "dtype is half at decode-0 and auto at prefill-0; tokenizer is not given at decode-0 and x at prefill-0"
        )
        assert not stats.ready
        reply = await proxy.post(TEXT)
        assert reply.status == 503
        assert "must be alike" in reply.error["message"]
        assert not prefill.calls + decode.calls


@pytest.mark.parametrize(
    ("connector", "mine", "theirs"),
    [
        (Connector.NIXL, AUTO, AUTO),
        (Connector.NIXL, AUTO, {}),  # from before engines told
        (Connector.P2P_NCCL, {}, AUTO),
        (Connector.P2P, AUTO, AUTO | {"tokenizer": "x"}),  # it compares by itself
    ],
)
async def test_engines_that_are_alike_or_do_not_say_so_are_a_pair(
    connector: Connector, mine: dict[str, str], theirs: dict[str, str]
) -> None:
    async with running_proxy() as proxy:
        await proxy.engine(Role.PREFILL, connector, told={"alike": mine})
        await proxy.engine(Role.DECODE, connector, told={"alike": theirs})
        assert (await proxy.post(TEXT)).status == 200


async def test_an_engine_that_is_unlike_one_of_two_serves_with_the_other() -> None:
    async with running_proxy() as proxy:
        prefill = await proxy.engine(Role.PREFILL, Connector.NIXL, told={"alike": AUTO})
        unlike = await proxy.start(
            FakeEngine(Role.DECODE, Connector.NIXL, told={"alike": AUTO | {"tokenizer": "x"}}, boot_id="unlike")
        )
        await proxy.state_of(unlike, "joining")
        decode = await proxy.engine(Role.DECODE, Connector.NIXL, told={"alike": AUTO}, boot_id="like")
        assert [(await proxy.post(TEXT)).status for _ in range(4)] == [200] * 4
        assert (len(prefill.calls), len(decode.calls), len(unlike.calls)) == (4, 4, 0)
