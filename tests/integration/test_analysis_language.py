"""The report in Chinese: the same numbers and files, with the words of the catalogue."""

import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
from support.analysis import failed, request, write_pair, write_realistic, write_run

from pd_analysis.doubts.one_load import doubts
from pd_analysis.main import main
from pd_analysis.numbers.evaluation import evaluate, together
from pd_analysis.plots import fonts, style
from pd_analysis.records.reader import load_tree
from pd_analysis.report import HTML
from pd_analysis.words.language import LANGUAGES, in_language
from pd_contracts.names import Topology

ENGLISH = re.compile(r"\b[a-z]{3,} [a-z]{2,} [a-z]{2,}\b")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def rendered(tmp_path: Path, *options: str) -> tuple[str, str]:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report"), *options]) == 0
    return tuple((tmp_path / "report" / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))  # type: ignore[return-value]


class Chinese(NamedTuple):
    """A sweep's report in Chinese."""

    folder: Path
    text: str
    page: str


@pytest.fixture(name="chinese", scope="module")
def _chinese(tmp_path_factory: pytest.TempPathFactory) -> Chinese:
    runs = tmp_path_factory.mktemp("sweep")
    for rate in (8.0, 16.0):
        for topology in Topology:
            write_realistic(runs / f"{rate:g}" / topology, topology, rate=rate, requests=30, tokens=4, simulated=True)
    return Chinese(runs / "report", *rendered(runs, "--lang", "zh"))


def test_no_english_sentence_is_left(chinese: Chinese) -> None:
    _, text, page = chinese

    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert [line for line in prose.splitlines() if ENGLISH.search(line)] == []
    assert '<html lang="zh">' in page
    body = re.sub(r"<(script|style|svg|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert [node for node in re.findall(r">([^<>]+)<", body) if ENGLISH.search(node)] == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_brief_answer_has_what_decides_and_the_reports_place(
    chinese: Chinese, lang: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = chinese.folder.parent
    (sweep / HTML).touch()

    assert main(["compare", str(sweep), "--brief", "--lang", lang]) == 0

    lines = capsys.readouterr().out.splitlines()
    simulated, findings, report = lines[0], " ".join(lines[1:-1]), lines[-1]
    assert simulated == {"en": "SIMULATED", "zh": "模拟数据"}[lang]
    assert "TTFT ≤ 500 ms" in findings
    assert {"en": "the report names", "zh": "个疑点。"}[lang] in findings
    assert report == {"en": f"Report: {sweep / HTML}", "zh": f"报告：{sweep / HTML}"}[lang]
    assert bool(ENGLISH.search(findings)) == (lang == "en")
    assert not any(line.startswith("┃") for line in lines)


def test_the_numbers_are_the_same_in_both(tmp_path: Path) -> None:
    write_pair(tmp_path, requests=120, tokens=8)
    english, _ = rendered(tmp_path)
    chinese, _ = rendered(tmp_path, "--lang", "zh")

    def cells(text: str) -> list[list[str]]:
        rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
        return [re.findall(r"\d+(?:[.,]\d+)*", " ".join(row[2:])) for row in rows if "−" not in "".join(row)]

    assert [len(row) for row in cells(english)] == [len(row) for row in cells(chinese)]
    assert sorted(chain.from_iterable(cells(english))) == sorted(chain.from_iterable(cells(chinese)))


def test_doubts_are_translated_with_their_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [*(request(n, n / 10) for n in range(20)), failed(20)])
    runs = load_tree([tmp_path]).runs
    found = doubts(together(evaluate(runs)))
    with in_language("zh"):
        translated = doubts(together(evaluate(runs)))

    assert len(found) == len(translated) >= 2
    for english, chinese in zip(found, translated, strict=True):
        for text, other in ((english.sentence, chinese.sentence), (english.remedy, chinese.remedy)):
            assert CHINESE.search(other), text
            assert set(re.findall(r"\d+", text)) <= set(re.findall(r"\d+", other))


def test_names_with_words_of_the_catalogue_cannot_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [request(0), failed(1, message="<b>Doubts</b> & {a}")])

    _, page = rendered(tmp_path, "--lang", "zh", "--title", "<i>Energy</i>")

    assert "<i>" not in page
    assert "<b>Doubts" not in page


def test_another_language_is_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        main(["report", "--lang", "xx"])

    assert refused.value.code == 2


# --- figures -------------------------------------------------------------------------------------------------------------------


def words_of(folder: Path) -> dict[str, list[str]]:
    """The texts of every figure."""
    return {path.stem: re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text()) for path in folder.rglob("*.svg")}


@pytest.mark.skipif(
    fonts.chinese_font() is None,
    reason="no font with Chinese characters (Debian, Ubuntu: apt-get install fonts-wqy-microhei)",
)
def test_figures_are_translated_where_there_is_a_font(chinese: Chinese) -> None:
    folder, text, page = chinese
    figures = words_of(folder)

    assert len(figures) > 12
    assert {name: words for name, words in figures.items() if not any(map(CHINESE.search, words))} == {}
    left = [words for texts in figures.values() for words in texts if ENGLISH.search(words)]
    assert left == []
    assert "模拟数据" in chain.from_iterable(figures.values())
    assert "没有含中文字符的字体" not in text + page


def test_without_a_font_figures_stay_english_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "chinese_font", lambda: None)
    write_pair(tmp_path, requests=60, tokens=4)

    text, page = rendered(tmp_path, "--lang", "zh")

    assert not any(map(CHINESE.search, chain.from_iterable(words_of(tmp_path / "report").values())))
    assert "没有含中文字符的字体" in text
    assert "没有含中文字符的字体" in page


def test_english_figures_need_no_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "chinese_font", lambda: None)
    write_pair(tmp_path, requests=60, tokens=4)

    text, page = rendered(tmp_path)

    assert "Chinese characters" not in text + page


def test_long_chinese_titles_break_within_the_figure() -> None:
    lines = style.wrapped("每请求焦耳数" * 12 + " combined 94.7 ms", 68)

    assert len(lines) == 3
    assert "".join(lines).replace(" ", "") == "每请求焦耳数" * 12 + "combined94.7ms"
    assert max(sum(1 + (not character.isascii()) for character in line) for line in lines) <= 68 + len("combined")
