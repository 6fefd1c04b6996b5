"""What operators can do, and requests that any engine answers."""

import contextlib
from collections.abc import AsyncIterator

from support.proxy import TEXT, RawClient, RunningProxy, running_proxy
from support.simulator import fast_profile, running, settings_for

from pd_contracts.names import Role

KEY = {"Authorization": "Bearer secret"}


@contextlib.asynccontextmanager
async def simulated() -> AsyncIterator[RunningProxy]:
    async with running_proxy(ping_ttl_s=10.0) as proxy:
        settings = settings_for(Role.COMBINED, proxy_port=proxy.settings.proxy_port)
        async with running(settings, fast_profile()):
            await proxy.stats_where(lambda stats: stats.ready)
            yield proxy


async def test_an_instance_is_drained_without_losing_what_it_has() -> None:
    async with running_proxy(admin_key="secret") as proxy:
        one, other = [await proxy.engine(Role.COMBINED, boot_id=f"boot-{number}") for number in range(2)]
        streams = [await RawClient.send(proxy, TEXT | {"stream": True, "max_tokens": 1000000}) for _ in range(2)]
        for stream in streams:
            await stream.read_until(b"t0 ")
        name = (await proxy.state_of(one, "ready")).name
        reply = await proxy.post({}, f"/admin/instances/{name}/drain", **KEY)
        assert reply.json == {"instance": name, "state": "draining", "in_flight": 1, "drained": False}
        for _ in range(4):
            assert (await proxy.post(TEXT)).status == 200
        assert (len(one.calls), len(other.calls)) == (1, 5)
        assert not one.calls[0].aborted
        async with proxy.session.delete(f"{proxy.url}/admin/instances/{name}/drain", headers=KEY) as undone:
            assert (await undone.json())["state"] == "ready"
        assert (await proxy.post({}, "/admin/instances/prefill-9/drain", **KEY)).status == 404
        assert (await proxy.post({}, f"/admin/instances/{name}/drain")).status == 403


async def test_a_restart_ends_the_draining() -> None:
    async with running_proxy(admin_key="secret") as proxy:
        engine = await proxy.engine(Role.COMBINED)
        await proxy.post({}, "/admin/instances/combined-0/drain", **KEY)
        assert (await proxy.post(TEXT)).status == 503
        engine.boot_id = "boot-2"
        await proxy.state_of(engine, "ready")
        assert (await proxy.post(TEXT)).status == 200


async def test_a_pair_finishes_on_a_decode_that_is_drained_meanwhile() -> None:
    async with running_proxy(admin_key="secret") as proxy:
        prefill, decode = await proxy.pair()
        prefill.gate.clear()
        client = await RawClient.send(proxy, TEXT)
        await proxy.stats_where(lambda stats: any(i.in_flight for i in stats.instances))
        await proxy.post({}, "/admin/instances/decode-0/drain", **KEY)
        prefill.gate.set()
        assert b" 200 " in await client.read_until(b"\r\n")
        assert len(decode.calls) == 1


async def test_profiling_reaches_every_engine_and_says_who_has_none() -> None:
    async with running_proxy(admin_key="secret") as proxy:
        await proxy.pair()
        reply = await proxy.post({}, "/admin/start_profile", **KEY)
        assert reply.status == 502
        assert set(reply.json["instances"]) == {"prefill-0", "decode-0"}
        assert all("404" in said for said in reply.json["instances"].values())


async def test_text_becomes_tokens_and_text_again() -> None:
    async with simulated() as proxy:
        tokens = (await proxy.post({"prompt": "hello there"}, "/tokenize", **{"Content-Type": "application/json"})).json
        assert tokens["count"] == len(tokens["tokens"]) > 0
        text = await proxy.post({"tokens": tokens["tokens"]}, "/detokenize")
        assert text.json == {"prompt": "hello there"}


async def test_an_engines_complaint_about_tokens_reaches_the_client() -> None:
    async with simulated() as proxy:
        assert (await proxy.post({"tokens": [10**9]}, "/detokenize")).status == 400
        assert (await proxy.post({"prompt": "x", "model": "other"}, "/tokenize")).status == 404
        assert (await proxy.post(b"nonsense", "/tokenize")).status == 400


async def test_without_an_engine_there_are_no_tokens() -> None:
    async with running_proxy() as proxy:
        assert (await proxy.post({"prompt": "x"}, "/tokenize")).status == 503


async def test_the_trace_context_reaches_both_engines() -> None:
    async with running_proxy() as proxy:
        prefill, decode = await proxy.pair()
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert (await proxy.post(TEXT, traceparent=parent)).status == 200
        assert [call.headers["traceparent"] for call in prefill.calls + decode.calls] == [parent, parent]
