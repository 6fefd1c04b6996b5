"""`GET /deployment`: a deployment describes itself."""

import msgspec
from support.proxy import MODEL, FakeEngine, RunningProxy, running_proxy
from support.workers import running_workers

from pd_contracts.deployment import DeployedEngine, DeploymentDocument
from pd_contracts.names import Connector, Role
from pd_routing.names import Routing


async def described(proxy: RunningProxy) -> DeploymentDocument:
    reply = await proxy.get("/deployment")
    assert reply.status == 200
    assert b"127.0.0.1" not in reply.body
    return msgspec.json.decode(reply.body, type=DeploymentDocument)


async def test_engines_say_what_they_are() -> None:
    async with running_proxy(deployment="mine", ping_key="key") as proxy:
        told = {"gpu_model": "NVIDIA H200", "versions": {"torch": "2.11"}, "transport": "nccl", "image": "i@sha256:1"}
        await proxy.engine(Role.PREFILL, told={**told, "gpus": ("GPU-1",)})
        await proxy.engine(Role.DECODE, told={**told, "gpus": ("GPU-2", "GPU-3")})

        found = await described(proxy)

    assert (found.name, found.shape, found.ready, found.simulated, found.gpus) == ("mine", "1P1D", True, False, 3)
    assert found.instances[1] == DeployedEngine(
        name="decode-0",
        role=Role.DECODE,
        state="ready",
        engine="fake",
        versions={"torch": "2.11"},
        models=[MODEL],
        connector=Connector.P2P_NCCL,
        transport="nccl",
        image="i@sha256:1",
        gpus=["GPU-2", "GPU-3"],
        gpu_model="NVIDIA H200",
    )


async def test_a_gpu_that_several_engines_share_counts_once_and_one_that_nobody_names_makes_the_number_unknown() -> (
    None
):
    async with running_proxy() as proxy:
        assert (await described(proxy)).gpus is None
        for boot in "ab":
            await proxy.engine(Role.COMBINED, told={"gpus": ("GPU-1",)}, boot_id=boot)
        assert ((await described(proxy)).shape, (await described(proxy)).gpus) == ("2C", 1)
        await proxy.start(FakeEngine(Role.COMBINED, None, health=503))
        await proxy.stats_where(lambda stats: len(stats.instances) == 3)
        assert (await described(proxy)).gpus is None


async def test_an_engine_that_is_gone_is_no_part_of_it() -> None:
    async with running_proxy() as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.pings = False
        await proxy.state_of(engine, "lost")
        assert (await described(proxy)).instances == []


async def test_simulated_engines_are_said_to_be_so() -> None:
    async with running_workers() as proxy:
        await proxy.engine(Role.COMBINED, told={"engine": "pd-simulator"})
        assert (await described(proxy)).simulated


async def test_settings_that_decide_how_requests_are_served_are_told_unless_they_are_the_defaults() -> None:
    async with running_proxy(ping_key="secret", model=MODEL) as proxy:
        assert (await described(proxy)).settings == {}
    routed = {"routing": Routing.ADAPTIVE, "ttft_slo_ms": 300.0, "tpot_slo_ms": 10.0}
    async with running_proxy(**routed, step_profile="h200-llama3-8b", ping_key="secret") as proxy:
        assert (await described(proxy)).settings == {
            "ROUTING": "adaptive",
            "TTFT_SLO_MS": "300",
            "TPOT_SLO_MS": "10",
            "STEP_PROFILE": "h200-llama3-8b",
        }
