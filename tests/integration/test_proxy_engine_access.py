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


@pytest.fixture(name="folders", scope="module")
def _folders(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of certificates by what is wrong with them; one for 127.0.0.1 ended long ago."""
    folder = tmp_path_factory.mktemp("expired")
    (folder / "database").touch()
    (folder / "serial").write_text("01\n")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=own\n[own]\ndatabase=database\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=any\n"
        "x509_extensions=names\n[any]\ncommonName=supplied\n[names]\nsubjectAltName=IP:127.0.0.1\n"
    )
    year = "-startdate 20200101000000Z -enddate 20210101000000Z"
    for command in (
        "req -new -newkey rsa:2048 -nodes -subj /CN=engine -keyout key.pem -out request.pem",
        f"ca -batch -config ca.cnf -selfsign -keyfile key.pem -in request.pem -out cert.pem {year}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True, cwd=folder)
    return {"certificate": certificate, "client": certificate, "expired": folder}


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({"engine_tls": "on", "engine_ca_file": "certificate"}, "certificate", "is for another name or address; ENGINE_TLS=any_name"),
        ({"engine_tls": "any_name"}, "certificate", "nobody that is trusted has signed the engine's certificate"),
        ({"engine_tls": "any_name", "engine_ca_file": "certificate"}, "expired", "ENGINE_CA_FILE names who is"),
        ({"engine_tls": "on", "engine_ca_file": "expired"}, "expired", "certificate has expired"),
        ({"engine_tls": "any_name", "engine_ca_file": "certificate"}, "", "an engine that speaks plain HTTP needs ENGINE_TLS=off"),
        ({"engine_tls": "off"}, "certificate", "an engine that speaks HTTPS needs ENGINE_TLS"),
        ({"engine_tls": "any_name", "engine_ca_file": "certificate"}, "client", "require a client's certificate?"),
    ],
)  # fmt: skip
async def test_what_is_wrong_between_http_and_https_is_told_once_in_the_log_and_in_stats(
    folders: dict[str, Path], ours: dict[str, str], theirs: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:

    tls = server(folders[theirs]) if theirs else None
    if tls is not None and theirs == "client":
        tls.verify_mode = ssl.CERT_REQUIRED
    if "engine_ca_file" in ours:
        ours = ours | {"engine_ca_file": str(folders[ours["engine_ca_file"]] / "cert.pem")}
    caplog.set_level("INFO")
    async with running_proxy(**ours) as proxy:
        engine = await proxy.start(FakeEngine(Role.COMBINED, tls=tls))
        await proxy.stats_where(lambda stats: any("first health" not in i.reason for i in stats.instances))
        found = await proxy.state_of(engine, "joining")
        assert found.reason.startswith("/health: ")
        assert reason in found.reason
        assert "127.0.0.1" not in found.reason
        assert (await proxy.post(TEXT)).status == 503
    told = [str(vars(record)["reason"]) for record in caplog.records if record.message == "engine not admitted yet"]
    assert told == [found.reason]
