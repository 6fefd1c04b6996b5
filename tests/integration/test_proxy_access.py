"""Clients with and without a key; engines from inside and outside the networks."""

from pathlib import Path

import pytest
from support.proxy import TEXT, FakeEngine, running_proxy

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
