"""`--out` that cannot be written is refused by every command with a sentence, before anything starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.analysis import write_pair

import pd_analysis.main
import pd_control.main
import pd_loadgen.main
import pd_planner.main

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "compare": (pd_control.main.main, "compare --engine sim --dry-run --out"),
    "demo": (pd_control.main.main, "demo --out"),
    "plan": (pd_control.main.main, "plan --input-tokens 512 --output-tokens 64 --rate 5 --out"),
    "report": (pd_analysis.main.main, "report runs --out"),
    "export": (pd_analysis.main.main, "export runs --out"),
    "classic": (pd_analysis.main.main, "export runs --classic --out"),
    "sweep": (pd_loadgen.main.main, "sweep sweep.yaml --dry-run --out"),
    "search": (pd_loadgen.main.main, "search --low 1 --high 2 --goodput ttft:100 --out"),
}
FILES: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "calibrate": (pd_planner.main.main, "calibrate runs --out"),
    "aggregate": (pd_loadgen.main.main, "aggregate runs --out"),
}
Refused = Callable[[tuple[Callable[[list[str]], int], str], str], str]


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pair(tmp_path / "runs")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "sweep.yaml").write_text(
        "base_url: http://127.0.0.1:9\nconcurrency_prompts: [[2, 4]]\ninput_output: [[16, 4]]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(name="refused")
def _refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(command: tuple[Callable[[list[str]], int], str], out: str) -> str:
        main, words = command
        before = sorted(place.rglob("*"))
        try:
            status = main([*words.split(), out])
        except SystemExit as end:
            status = int(end.code or 0)
        assert status in (1, 2)
        assert sorted(place.rglob("*")) == before
        assert (place / "README.md").read_text() == "mine"
        told = capsys.readouterr()
        return " ".join((told.out + told.err).split())

    return run


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("README.md", "/README.md is a file: choose another --out, a folder"),
        ("README.md/deep/down", "/README.md is a file: choose another --out, a folder"),
        ("/proc/x", "/proc takes no files: choose another --out"),
    ],
)
def test_a_folder_that_cannot_be(
    refused: Refused, command: tuple[Callable[[list[str]], int], str], out: str, sentence: str
) -> None:
    assert sentence in refused(command, out)


@pytest.mark.parametrize("command", FILES.values(), ids=FILES)
@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("folder.toml", "folder.toml is a folder: choose another --out, a file"),
        ("README.md/x.toml", "/README.md is a file: choose another --out, a folder"),
        ("/proc/x.toml", "/proc takes no files: choose another --out"),
    ],
)
def test_a_file_that_cannot_be(
    refused: Refused, command: tuple[Callable[[list[str]], int], str], out: str, sentence: str
) -> None:
    assert sentence in refused(command, out)


def test_a_plan_replaces_nobodys_settings(place: Path, refused: Refused) -> None:
    (place / "mine").mkdir()
    (place / "mine" / ".env").write_text("MODEL=mine")

    assert "holds .env, which was not written by a plan" in refused(COMMANDS["plan"], "mine")
    assert (place / "mine" / ".env").read_text() == "MODEL=mine"
