"""HTTPS: which certificates are trusted, and that tokens keep their times."""

import shutil
import ssl
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.loadgen import StampedServer, run

from pd_contracts import latency
from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines


@dataclass
class Secured:
    """A server, and the certificate that it shows."""

    server: StampedServer
    certificate: Path


@pytest.fixture(name="secured", scope="module")
def _secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with StampedServer(ttft=0.1, tpot=0.02, tls=context).running() as server:
        yield Secured(server, certificate)


def records(folder: Path) -> list[RequestRecord]:
    return list(read_lines(folder / "requests.jsonl", RequestRecord))


def test_an_authority_of_ones_own_is_trusted_and_tokens_keep_their_times(secured: Secured, tmp_path: Path) -> None:
    done = run(secured.server.url, tmp_path / "run", ca_file=secured.certificate, warmup=1)

    assert done.returncode == 0, done.stderr
    made = records(tmp_path / "run")
    assert all(record.error is None for record in made)
    # the proof that the chunks are those of the server: equal text, after it was written, and as far apart
    account = {one.output_hash: one for one in secured.server.served}
    ratios = []
    for record in made:
        assert record.output_hash is not None
        wrote = account[record.output_hash].tokens
        assert all(seen >= at for (seen, _), at in zip(record.chunks, wrote, strict=True))
        ratios.append((latency.tpot(record) or 0) * (len(wrote) - 1) / (wrote[-1] - wrote[0]))
    assert statistics.median(ratios) == pytest.approx(1, abs=0.25)
    assert secured.server.connections < len(secured.server.served)  # they are used again


def test_a_certificate_that_nobody_vouches_for_ends_the_run_with_a_sentence(secured: Secured, tmp_path: Path) -> None:
    done = run(secured.server.url, tmp_path / "run", ready_timeout=0.3)

    assert done.returncode == 2
    assert "certificate" in done.stderr
    assert "Traceback" not in done.stderr


def test_trusting_anybody_is_possible_and_noted(secured: Secured, tmp_path: Path) -> None:
    done = run(secured.server.url, tmp_path / "run", insecure=True, duration=0.3)

    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr
    assert any("not checked" in note for note in read_json(tmp_path / "run" / "manifest.json", Manifest).notes)


def test_a_server_that_speaks_no_tls_is_a_sentence(tmp_path: Path) -> None:
    with StampedServer().running() as plain:
        done = run(plain.url.replace("http:", "https:"), tmp_path / "run", ready_timeout=0.3)

    assert done.returncode == 2
    assert "handshake" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ca_file": "absent.pem"}, "holds no certificates"),
        ({"ca_file": "a.pem", "insecure": True}, "checks no certificate"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    done = run("https://127.0.0.1:9", tmp_path / "run", **options)

    assert done.returncode == 2
    assert sentence in done.stderr
