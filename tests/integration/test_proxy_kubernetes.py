"""The proxy finds engines by Kubernetes' API: a small API server over HTTPS, engines that never ping."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.aio import until
from support.kubernetes import PODS, SLICES, ApiServer, account, certificate, settings_of
from support.proxy import MODEL, FakeEngine, RunningProxy, running_proxy

from pd_contracts.free_ports import free_port
from pd_contracts.names import Connector, Role
from pd_contracts.stats import InstanceStats

LABELS = {"app.kubernetes.io/instance": "demo", "app.kubernetes.io/name": "pdstack"}
SELECTOR = "app.kubernetes.io/name=pdstack,app.kubernetes.io/instance=demo"


@dataclass
class Cluster:
    """An API server, what lies in it, and the files of an account that may ask it."""

    api: ApiServer
    certificate: tuple[Path, Path]
    account: Path
    engines: contextlib.AsyncExitStack
    restarts: dict[str, int] = field(default_factory=dict)

    def proxy(self, **fields: Any) -> contextlib.AbstractAsyncContextManager[RunningProxy]:
        own = settings_of(self.api, self.account, discovery_selector=SELECTOR, **fields)
        return running_proxy(**own)

    async def engine(
        self, role: Role, pod: str, uid: str, connector: Connector = Connector.NIXL, version: str = ""
    ) -> FakeEngine:
        """Start an engine that does not ping, and let Kubernetes know of it."""
        engine = FakeEngine(role, connector, pings=False, version=version)
        nobody = free_port()
        await self.engines.enter_async_context(engine.running(nobody))
        await self.started(engine, pod, uid)
        ports = [{"name": role.value, "port": engine.http_port}]
        if role is not Role.COMBINED:
            ports.append({"name": f"kv-{role.value}", "port": engine.kv_port})
        target = {"kind": "Pod", "name": pod, "uid": uid}
        piece = {
            "metadata": {
                "name": f"{pod}-slice",
                "labels": LABELS | {"pdstack/engine-kind": "fake", "pdstack/connector": connector.value},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": False}, "targetRef": target}],
            "ports": ports,
        }
        await self.api.put(SLICES, piece)
        return engine

    async def started(self, engine: FakeEngine, pod: str, uid: str, restarts: int = 0) -> None:
        """The kubelet reports how often the container was started again."""
        status = {"containerStatuses": [{"name": engine.role.value, "restartCount": restarts}]}
        labels = LABELS | {"pdstack/engine": "true"}
        await self.api.put(PODS, {"metadata": {"name": pod, "uid": uid, "labels": labels}, "status": status})


@pytest.fixture(name="cluster")
async def _cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    api = ApiServer()
    pair = certificate(tmp_path)
    async with api.running(*pair), contextlib.AsyncExitStack() as engines:
        yield Cluster(api, pair, account(tmp_path / "account", "first", pair[0]), engines)


async def ready(proxy: RunningProxy, count: int) -> list[InstanceStats]:
    stats = await proxy.stats_where(lambda stats: [i.state for i in stats.instances].count("ready") == count)
    return stats.instances


async def test_engines_that_never_ping_serve(cluster: Cluster) -> None:
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.PREFILL, "prefill-0", "uid-p")
        await cluster.engine(Role.DECODE, "decode-0", "uid-d")
        instances = await ready(proxy, 2)
        reply = await proxy.post({"model": MODEL, "prompt": "one two", "max_tokens": 3})

    assert {(i.role, i.connector, i.engine, i.boot_id) for i in instances} == {
        (Role.PREFILL, Connector.NIXL, "fake", "uid-p.0"),
        (Role.DECODE, Connector.NIXL, "fake", "uid-d.0"),
    }
    assert (reply.status, reply.json["choices"][0]["text"]) == (200, "t0 t1 t2")


async def test_engines_that_never_ping_are_asked_for_their_version(cluster: Cluster) -> None:
    """Without it, the first token of a chat would never be prefill's: whether decode can go on behind it depends on the version."""
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.DECODE, "decode-0", "uid-d", Connector.P2P, version="0.32.0")
        await cluster.engine(Role.PREFILL, "prefill-0", "uid-p", Connector.P2P)
        versions = {i.name: i.version for i in await ready(proxy, 2)}

    assert versions == {"decode-0": "0.32.0", "prefill-0": ""}, "one that does not say is admitted, too"


async def test_engines_with_p2p_nccl_are_paired_by_the_pods_address_and_the_kv_port(cluster: Cluster) -> None:
    async with cluster.proxy() as proxy:
        prefill = await cluster.engine(Role.PREFILL, "prefill-0", "uid-p", Connector.P2P_NCCL)
        decode = await cluster.engine(Role.DECODE, "decode-0", "uid-d", Connector.P2P_NCCL)
        await ready(proxy, 2)
        await proxy.post({"model": MODEL, "prompt": "one two", "max_tokens": 3})

    [call] = decode.calls
    assert call.engine_id.startswith(
        f"___prefill_addr_127.0.0.1:{prefill.kv_port}___decode_addr_127.0.0.1:{decode.kv_port}_"
    )


async def test_what_was_there_before_the_proxy_is_found_and_other_releases_are_not(cluster: Cluster) -> None:
    await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
    stranger = await cluster.engine(Role.COMBINED, "stranger-0", "uid-s")
    other = {"app.kubernetes.io/instance": "other", "app.kubernetes.io/name": "pdstack", "pdstack/engine-kind": "fake"}
    await cluster.api.put(
        SLICES,
        {
            **cluster.api.objects[SLICES]["stranger-0-slice"],
            "metadata": {"name": "stranger-0-slice", "labels": other},
        },
    )
    async with cluster.proxy() as proxy:
        await ready(proxy, 1)
        assert [i.boot_id for i in (await proxy.stats()).instances] == ["uid-c.0"]
    assert stranger.other_gets == []


async def test_an_engine_whose_endpoint_is_gone_is_lost(cluster: Cluster) -> None:
    async with cluster.proxy(ping_ttl_s=4.0) as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await ready(proxy, 1)
        await cluster.api.delete(SLICES, "combined-0-slice")
        stats = await proxy.stats_where(lambda stats: stats.instances[0].state == "lost")

    assert not stats.ready


async def test_a_container_that_starts_again_and_a_new_pod_are_told_from_the_process_before(cluster: Cluster) -> None:
    async with cluster.proxy() as proxy:
        engine = await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await ready(proxy, 1)
        await cluster.started(engine, "combined-0", "uid-c", restarts=1)
        await proxy.stats_where(lambda stats: [i.boot_id for i in stats.instances] == ["uid-c.1"])
        piece = cluster.api.objects[SLICES]["combined-0-slice"]
        piece["endpoints"][0]["targetRef"]["uid"] = "uid-new"
        await cluster.api.put(SLICES, piece)
        await cluster.started(engine, "combined-0", "uid-new")
        await proxy.stats_where(lambda stats: [i.boot_id for i in stats.instances] == ["uid-new.0"])
        assert (await ready(proxy, 1))[0].name == "combined-0"


@pytest.mark.parametrize("late", [True, False], ids=["event", "status"])
async def test_a_server_that_forgot_the_version_is_listed_again(cluster: Cluster, late: bool) -> None:
    cluster.api.says_gone_late = late
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await ready(proxy, 1)
        lists = cluster.api.asked(SLICES, watch=False)
        await cluster.api.forget()
        await until(lambda: cluster.api.asked(SLICES, watch=False) > lists)
        await cluster.engine(Role.COMBINED, "combined-1", "uid-2")
        assert len(await ready(proxy, 2)) == 2


async def test_a_watch_that_ends_goes_on_where_it_was_without_another_list(cluster: Cluster) -> None:
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await ready(proxy, 1)
        watches = cluster.api.asked(SLICES, watch=True)
        await cluster.api.hang_up()
        await until(lambda: cluster.api.asked(SLICES, watch=True) > watches)
        await cluster.engine(Role.COMBINED, "combined-1", "uid-2")
        assert len(await ready(proxy, 2)) == 2

    assert cluster.api.asked(SLICES, watch=False) == 1


async def test_a_token_that_the_kubelet_replaced_is_used_from_the_next_request_on(cluster: Cluster) -> None:
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await ready(proxy, 1)
        account(cluster.account, "second", cluster.certificate[0])
        cluster.api.token = "second"
        await cluster.api.hang_up()
        await cluster.engine(Role.COMBINED, "combined-1", "uid-2")
        assert len(await ready(proxy, 2)) == 2

    assert 401 not in {status for _, _, status in cluster.api.requests}


async def test_a_refused_account_is_asked_again_until_it_may(cluster: Cluster) -> None:
    cluster.api.token = "not yet"
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await until(lambda: any(status == 401 for _, _, status in cluster.api.requests))
        assert (await proxy.get("/ready")).status == 503
        assert (await proxy.get("/health")).status == 200
        cluster.api.token = "first"
        await ready(proxy, 1)


async def test_engines_outlive_an_api_server_that_is_away(tmp_path: Path) -> None:
    api = ApiServer()
    pair = certificate(tmp_path)
    folder = account(tmp_path / "account", "first", pair[0])
    # The proxy ends before the engines that it asks.
    async with contextlib.AsyncExitStack() as engines, contextlib.AsyncExitStack() as proxies:
        async with contextlib.AsyncExitStack() as serving:
            await serving.enter_async_context(api.running(*pair))
            cluster = Cluster(api, pair, folder, engines)
            proxy = await proxies.enter_async_context(cluster.proxy(ping_ttl_s=4.0))
            await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
            await ready(proxy, 1)
        await asyncio.sleep(5)  # longer than the TTL
        assert (await proxy.stats()).ready
        assert (await proxy.post({"model": MODEL, "prompt": "one", "max_tokens": 1})).status == 200
        async with api.running(*pair):
            await cluster.engine(Role.COMBINED, "combined-1", "uid-2")
            assert len(await ready(proxy, 2)) == 2


async def test_a_server_with_a_certificate_of_somebody_else_is_not_believed(cluster: Cluster, tmp_path: Path) -> None:
    foreign, _ = certificate(tmp_path, "foreign")
    (cluster.account / "ca.crt").write_bytes(foreign.read_bytes())
    async with cluster.proxy() as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        await asyncio.sleep(1)
        assert (await proxy.stats()).instances == []
    assert cluster.api.requests == []


async def test_addresses_outside_the_allowed_networks_are_refused_here_too(cluster: Cluster) -> None:
    async with cluster.proxy(ping_networks=("10.0.0.0/8",)) as proxy:
        await cluster.engine(Role.COMBINED, "combined-0", "uid-c")
        stats = await proxy.stats_where(lambda stats: stats.rejected_pings)
        assert stats.instances == []


async def test_outside_a_pod_it_does_not_start_and_says_why(tmp_path: Path) -> None:
    variables = {"DISCOVERY": "kubernetes", "SERVICE_ACCOUNT_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "pd_proxy", env=variables, stderr=PIPE)
    _, said = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert f"{tmp_path}/token" in said.decode()
