"""Folders that cannot be written are found before anything starts; a full disk costs records, and not what explains it."""

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loadgen import REPOSITORY, StampedServer, command, environment

from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines

LIMIT = 400_000  # bytes of one file, which stand for the end of the disk


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.01, tpot=0.001).running() as server:
        yield server


def full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.parametrize("processes", [1, 2])
def test_records_that_do_not_fit_end_the_run_and_all_that_did_is_kept_with_the_reason(
    server: StampedServer, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "run"
    words = command(server.url, out, duration=60, rate=40, output_tokens=400, processes=processes, warmup=2)
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
        cwd=REPOSITORY,
        preexec_fn=full_disk,
    )

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = f"the run was ended, and its records are not complete: {out / 'requests.jsonl'} cannot be written: File too large"
    assert sentence in done.stderr
    made = read_json(out / "manifest.json", Manifest)
    records = list(read_lines(out / "requests.jsonl", RequestRecord))
    assert (made.complete, made.window is not None) == (False, True)
    assert any(sentence in note for note in made.notes)
    assert len(records) > 10
    assert (out / "requests.jsonl").read_bytes().endswith(b"\n")
    assert (out / "summary.json").exists()
    assert {path.name for path in out.iterdir()} == {"manifest.json", "requests.jsonl", "summary.json"}


def test_a_folder_that_cannot_be_written_is_found_before_the_server_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    done = subprocess.run(
        command("http://127.0.0.1:1", out, ready_timeout=30),
        capture_output=True, text=True, timeout=20, check=False, env=environment(), cwd=REPOSITORY,
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr == f"pd-loadgen: {tmp_path / 'file'} is a file: choose another --out, a folder\n"
