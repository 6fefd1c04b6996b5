"""Clients with and without a key; engines from inside and outside the networks."""

import asyncio
from pathlib import Path

import pytest
from support.proxy import TEXT, FakeEngine, running_proxy
from support.workers import running_workers

from pd_contracts.names import Role


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "key-one-and-more"])
async def test_without_a_key_no_engine_hears_of_it(tmp_path: Path, header: str | None) -> None:
    (tmp_path / "keys").write_text("key-one\nkey-two\n")
    async with running_proxy(api_keys_file=str(tmp_path / "keys")) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        headers = {} if header is None else {"Authorization": header}
        reply = await proxy.post(TEXT, **headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert (await proxy.get("/v1/models")).status == 401
        assert not engine.calls


async def test_with_a_key_it_is_served_and_the_key_stays_here(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-one\nkey-two\n")
    async with running_proxy(api_keys_file=str(tmp_path / "keys")) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        for key in ("key-one", "key-two"):
            assert (await proxy.post(TEXT, Authorization=f"Bearer {key}")).status == 200
        assert not any("Authorization" in call.headers for call in engine.calls)
        assert (await proxy.get("/health")).status == (await proxy.get("/stats")).status == 200


async def test_an_engine_outside_the_networks_is_not_believed() -> None:
    async with running_proxy(ping_networks=("10.0.0.0/8",)) as proxy:
        await proxy.start(FakeEngine(Role.COMBINED))
        stats = await proxy.stats_where(lambda stats: stats.rejected_pings)
        assert not stats.instances
        assert 'reason="network"' in (await proxy.get("/metrics")).body.decode()


@pytest.mark.parametrize(
    ("header", "status"), [("bearer key", 200), ("BEARER key", 200), ("key", 401), ("Basic key", 401)]
)
async def test_the_scheme_may_be_in_any_case_but_must_be_there(tmp_path: Path, header: str, status: int) -> None:
    (tmp_path / "keys").write_text("key\n")
    async with running_proxy(api_keys_file=str(tmp_path / "keys")) as proxy:
        await proxy.engine(Role.COMBINED)
        for path in ("/v1/completions", "/v1/completions?x=1"):  # the second comes to the other server
            assert (await proxy.post(TEXT, path, Authorization=header)).status == status


@pytest.mark.parametrize("workers", [False, True])
async def test_keys_change_without_a_restart(tmp_path: Path, *, workers: bool) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    settings = {"api_keys_file": str(keys)}

    async def lets_in(key: str) -> bool:
        return (await proxy.post(TEXT, Authorization=f"Bearer {key}")).status == 200

    async with running_workers(**settings) if workers else running_proxy(**settings) as proxy:
        await proxy.engine(Role.COMBINED)
        assert await lets_in("old")
        keys.write_text("new-key\n")
        async with asyncio.timeout(30):
            while not await lets_in("new-key"):  # noqa: ASYNC110  a file has no event
                await asyncio.sleep(0.1)
        for _ in range(20):
            if await lets_in("old"):
                await asyncio.sleep(0.1)  # another worker, which looks once a second
        assert not await lets_in("old")


@pytest.mark.parametrize("workers", [False, True])
async def test_an_emptied_file_refuses_everybody_and_stats_say_so(tmp_path: Path, *, workers: bool) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key\n")
    settings = {"api_keys_file": str(keys)}
    async with running_workers(**settings) if workers else running_proxy(**settings) as proxy:
        await proxy.engine(Role.COMBINED)
        assert not (await proxy.stats()).api_keys
        keys.write_text("")
        stats = await proxy.stats_where(lambda stats: stats.api_keys)
        assert "every client is refused" in stats.api_keys
        async with asyncio.timeout(30):
            while (await proxy.post(TEXT, Authorization="Bearer key")).status != 401:  # noqa: ASYNC110  a file has no event
                await asyncio.sleep(0.1)
        assert (await proxy.post(TEXT)).status == 401
