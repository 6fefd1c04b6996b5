"""`vmm` between two processes: P2pConnector's own code, with memory files in the place of a GPU's memory."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chart import ROOT
from support.monitor import build_library
from support.waiting import until

ENGINE = ROOT / "tests/support/vmm_engine.py"


@pytest.fixture(name="library", scope="module")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("cuda"), "fake_cuda.c", "libcuda.so.1")


@contextlib.contextmanager
def engine(role: str, folder: Path, library: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """The process, and the file with what it says."""
    said = folder / f"{role}.txt"
    environment = os.environ | {
        "PD_ROLE": role,
        "KV_SOCKET_FOLDER": str(folder / "sockets"),
        "LD_LIBRARY_PATH": str(library.parent),
    }
    with said.open("ab") as file:
        process = subprocess.Popen([sys.executable, str(ENGINE), "start"], env=environment, stdout=file, stderr=file)
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


def test_prefill_writes_decodes_memory_and_decode_knows_when_it_has_let_go(tmp_path: Path, library: Path) -> None:
    with engine("decode", tmp_path, library) as (_, told):
        with engine("prefill", tmp_path, library) as (process, sent):
            until(lambda: told.read_text().splitlines() == ["keys and values"], 20, "decode reads what prefill wrote")
            assert sent.read_text().splitlines()[-1] == "sent"
            process.kill()
            until(lambda: told.read_text().splitlines()[-1] == "prefill-0 has let go", 20, "decode hears of its end")
        with engine("prefill", tmp_path, library):
            until(lambda: told.read_text().count("keys and values") == 2, 20, "the next prefill gets the memory")


def test_a_decode_that_starts_again_after_it_was_killed_takes_its_socket_back(tmp_path: Path, library: Path) -> None:
    for _ in range(2):
        with engine("decode", tmp_path, library) as (_, told), engine("prefill", tmp_path, library):
            until(lambda: "keys and values" in told.read_text(), 20, "the descriptor came")
        told.unlink()


def test_a_prefill_that_finds_no_socket_says_why(tmp_path: Path, library: Path) -> None:
    with engine("prefill", tmp_path, library) as (_, sent):
        until(lambda: "decode is on another node, or the engines do not share" in sent.read_text(), 20, "the reason")
