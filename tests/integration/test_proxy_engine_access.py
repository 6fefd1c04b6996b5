"""Engines that demand a key, and engines that speak HTTPS."""

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.proxy import BODIES, TEXT, FakeEngine, running_proxy
from support.workers import running_workers

from pd_contracts.names import Connector, Role


@pytest.fixture(name="certificate", scope="module")
def _certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody but itself has signed, with its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    request = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    made = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", *request.split(), *made], check=True, capture_output=True)
    return folder


def server(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@BODIES
@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.NIXL])
async def test_engines_with_a_key_are_admitted_and_asked_with_it(body: dict[str, Any], connector: Connector) -> None:
    async with running_proxy(engine_api_key="sesame") as proxy:
        prefill, decode = [
            await proxy.start(FakeEngine(role, connector, api_key="sesame")) for role in (Role.PREFILL, Role.DECODE)
        ]
        await proxy.stats_where(lambda stats: stats.ready)
        reply = await proxy.post(body, Authorization="Bearer mine")
        assert reply.status == 200
        assert b"sesame" not in reply.body
        assert {call.headers["Authorization"] for call in prefill.calls + decode.calls} == {"Bearer sesame"}


async def test_an_engine_with_another_key_is_not_admitted_and_the_reason_is_told() -> None:
    async with running_proxy(engine_api_key="sesame") as proxy:
        engine = await proxy.start(FakeEngine(Role.COMBINED, api_key="other"))
        found = await proxy.checked(engine)
        assert "401" in found.reason
        assert "ENGINE_API_KEY" in found.reason
        assert (await proxy.post(TEXT)).status == 503


@BODIES
@pytest.mark.parametrize("workers", [False, True])
async def test_engines_that_speak_https_are_asked_in_it(
    certificate: Path, body: dict[str, Any], *, workers: bool
) -> None:
    settings = {"engine_tls": "any_name", "engine_ca_file": str(certificate / "cert.pem")}
    async with running_workers(**settings) if workers else running_proxy(**settings) as proxy:
        await proxy.engine(Role.PREFILL, tls=server(certificate))
        await proxy.engine(Role.DECODE, tls=server(certificate))
        assert [(await proxy.post(body)).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("ours", [{"engine_tls": "on"}, {"engine_tls": "any_name"}, {"engine_tls": "off"}])
async def test_another_name_an_unknown_signer_and_plain_http_are_refused(
    certificate: Path, ours: dict[str, str]
) -> None:
    if ours["engine_tls"] == "on":
        ours = ours | {"engine_ca_file": str(certificate / "cert.pem")}  # but 127.0.0.1 is not its name
    async with running_proxy(**ours) as proxy:
        engine = await proxy.start(FakeEngine(Role.COMBINED, tls=server(certificate)))
        await proxy.stats_where(lambda stats: any("first health" not in i.reason for i in stats.instances))
        found = await proxy.state_of(engine, "joining")
        assert "/health" in found.reason
        assert "127.0.0.1" not in found.reason
