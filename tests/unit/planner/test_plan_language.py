"""A plan in another language: everything that people read is translated, and nothing that programs read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from support.languages import WORDS, Marking, prose_of, unmarked
from support.planning import H200, poisson, write_run

from pd_analysis.plots import fonts
from pd_analysis.words import language
from pd_control.main import main as pdctl
from pd_planner.main import main
from pd_planner.search import breakeven
from pd_simulator.steps.engines import Engines

QUESTION = [
    "--input-tokens",
    "2048",
    "--output-tokens",
    "128",
    "--rate",
    "30",
    "--goodput",
    "ttft:500",
    "tpot:15",
    "--cell",
    "2",
    "--draws",
    "5",
]
# Commands and names stay what they are.
COMMANDS = re.compile(r"KV cache|pdctl compare .*|pip install numba|pd-plan \w+|pd-loadgen run")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakeven, "PROMPTS", (512, 2048))
    monkeypatch.setattr(breakeven, "OUTPUTS", (32, 128))
    monkeypatch.setattr(breakeven, "RATES", (0.5, 0.9))


def pages(folder: Path) -> Iterator[Path]:
    yield from (folder / "plan.html", folder / "plan.md", *sorted(folder.rglob("*.svg")))


def english(text: str) -> list[str]:
    return [line for line in COMMANDS.sub("", text).splitlines() if WORDS.search(line)]


def test_no_sentence_of_a_plan_goes_past_the_catalogues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(language, "catalogue", lambda _: Marking())
    monkeypatch.setattr(fonts, "chinese_font", lambda: "DejaVu Sans")
    monkeypatch.setenv("COLUMNS", "400")

    assert main([*QUESTION, "--lang", "zh", "--out", str(tmp_path)]) == 0

    told = capsys.readouterr()
    for text in (told.out, told.err, *map(prose_of, pages(tmp_path))):
        assert text.count("⟦") > 2
        assert [part for part in unmarked(COMMANDS.sub("", text)) if WORDS.search(part)] == []


def test_a_plan_in_chinese_is_one_and_its_files_for_programs_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert pdctl(["plan", *QUESTION, "--lang", "zh", "--out", str(tmp_path / "zh")]) == 0
    told = capsys.readouterr()
    assert main([*QUESTION, "--out", str(tmp_path / "en")]) == 0

    assert "模拟数据" in told.out
    assert english(told.out.split(str(tmp_path))[0]) == []
    assert english(told.err) == []
    for page in pages(tmp_path / "zh"):
        if page.suffix != ".svg" or fonts.chinese_font():
            assert CHINESE.search(prose_of(page))
            assert english(prose_of(page)) == []
    zh, en = (json.loads((tmp_path / lang / "plan.json").read_text()) for lang in ("zh", "en"))
    assert {key for key in en if zh[key] != en[key]} <= {"command", "created"}


@pytest.mark.parametrize(
    "words",
    [
        ["--goodput", "ttft:1"],
        ["--rate", "1000", "--gpus", "2"],
        ["--kv-tokens", "500"],
        ["--power-cap-w", "50", "--rate", "5"],
    ],
)
def test_why_there_is_no_plan_is_said_in_chinese(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--input-tokens", "512", "--output-tokens", "64", "--draws", "2", "--quiet", "--lang", "zh", *words]

    assert main(asked) == 2

    told = capsys.readouterr().err
    assert CHINESE.search(told)
    assert english(told) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--speed", "2"],
        ["--rate", "-3"],
        ["--attainment", "90"],
        ["--objective", "speed"],
        ["--rat"],
        ["--gpus"],
        ["--nothing", "5"],
        ["--goodput", "itl:5"],
        ["--connectors", "rdma"],
        ["--trace", "x.csv", "--rate", "5"],
        ["--trace", "x.csv", "--input-tokens", "5"],
        ["--profile", "h100"],
        ["--gpu", "H200"],
        ["--model", "llama-3.1-70b", "--gpu", "L40S"],
        ["--power-cap-w", "50"],
        ["--max-num-batched-tokens", "9"],
        ["--", "--prefix-tokenz", "5"],
        ["plans"],
        ["check"],
        ["check", "PLAN", "RUNS"],
        ["calibrate", "RUNS", "--out", "x.json"],
        ["calibrate", "RUNS", "--out", "RUNS"],
        ["calibrate", "RUNS", "--out", "x.toml"],
    ],
)
def test_what_is_wrong_with_a_command_line_is_said_in_chinese(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text("[]")
    Path("runs.toml").mkdir()
    places = {"PLAN": "plan.json", "RUNS": "runs.toml"}
    language_first = ["--lang", "zh"] if words[0].startswith("-") else []
    given = [*language_first, *(places.get(word, word) for word in words), *([] if language_first else ["--lang=zh"])]

    try:
        status = main(given)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else -1

    told = capsys.readouterr().err
    assert status == 2
    assert CHINESE.search(told)
    assert english(told) == []


@pytest.mark.parametrize("command", [[], ["check"], ["calibrate"]], ids=["question", "check", "calibrate"])
def test_no_sentence_of_the_help_goes_past_the_catalogues(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(language, "catalogue", lambda _: Marking())
    monkeypatch.setenv("COLUMNS", "400")

    with pytest.raises(SystemExit) as end:
        main([*command, "--lang", "zh", "--help"])

    told = capsys.readouterr().out
    assert end.value.code == 0
    outside = "\n".join(unmarked(told))
    assert [line for line in outside.splitlines() if WORDS.search(line) and "pd-plan" not in line] == []


def test_lines_of_the_chinese_help_fit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    with pytest.raises(SystemExit):
        main(["--lang", "zh", "--help"])

    options = capsys.readouterr().out.partition("选项：\n")[2].partition("示例")[0]
    lines = [line.strip() for line in options.splitlines()]
    assert max(map(cell_len, options.splitlines())) <= 80
    assert [line for line in lines if line.startswith(("，", "。", "；", "：", "、", "）"))] == []


def test_what_was_measured_is_compared_in_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUESTION, "--quiet", "--out", str(tmp_path / "plan")]) == 0
    engines = Engines(0, 1, None, H200.memory.kv_tokens)
    write_run(tmp_path / "runs" / "run", H200, engines, poisson(6, 30, 2048, 128), "plain")
    capsys.readouterr()

    assert main(["check", str(tmp_path / "plan" / "plan.json"), str(tmp_path / "runs"), "--lang", "zh"]) == 0

    told = capsys.readouterr().out
    assert "区间内" in told
    assert english(told) == []
