"""Every sentence of the report goes through the catalogues, and every catalogue has all of them."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from support.analysis import failed, request, write_realistic, write_run
from support.languages import WORDS, Marking, prose_of, strings, unmarked
from support.sources import parsed

import pd_analysis
import pd_planner
from pd_analysis.records.reader import load_tree
from pd_analysis.report.writer import write_report
from pd_analysis.words import language
from pd_analysis.words.language import LANGUAGES, Sentence, in_language, ntr, tr
from pd_contracts.names import Topology

PACKAGE = Path(pd_analysis.__file__).parent
WRITER = runpy.run_path(str(Path(__file__).parents[3] / "docs/write_catalogue.py"))
OTHERS = LANGUAGES[1:]
CHINESE = re.compile(r"[\u4e00-\u9fff]")
HOLE = re.compile(r"\{\w*\}")


@pytest.fixture(name="catalogue", params=OTHERS)
def _catalogue(request: pytest.FixtureRequest) -> Catalog:
    catalogue: Catalog = WRITER["updated"](request.param)
    return catalogue


def messages(catalogue: Catalog) -> Iterator[tuple[str, tuple[str, ...]]]:
    for message in catalogue:
        if message.id:
            yield ids_of(message)[-1], WRITER["strings_of"](message)


def ids_of(message: Message) -> tuple[str, ...]:
    return tuple(map(str, message.id)) if isinstance(message.id, tuple | list) else (str(message.id),)


def test_every_sentence_has_its_translation(catalogue: Catalog) -> None:
    assert len(list(messages(catalogue))) > 400
    assert [message.id for message in WRITER["untranslated"](catalogue)] == [], "run make docs, and write them"


def test_no_sentence_is_hidden_from_the_catalogues() -> None:
    """Babel does not look into f-strings; a sentence that stands there would stay English."""
    known = {text for message in WRITER["extracted"]() if message.id for text in ids_of(message)}
    called = [
        node.args[0].value
        for folder in WRITER["FOLDERS"]
        for path in folder.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"tr", "mark", "ntr"}
        if node.args and isinstance(node.args[0], ast.Constant)
    ]

    assert len(called) > 400
    assert set(called) - known == set()


def test_the_catalogues_are_up_to_date(catalogue: Catalog) -> None:
    path: Path = WRITER["path_of"](str(catalogue.locale))

    assert path.read_text(encoding="utf-8") == WRITER["text_of"](catalogue), "run make docs"


def test_a_sentence_and_its_translation_have_the_same_holes(catalogue: Catalog) -> None:
    wrong = [
        (english, other)
        for english, others in messages(catalogue)
        for other in others
        if set(HOLE.findall(english)) != set(HOLE.findall(other))
    ]

    assert wrong == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_sentence_is_rendered(lang: str) -> None:
    catalogue: Catalog = WRITER["extracted"]()
    with in_language(lang):
        for message in catalogue:
            if not message.id:
                continue
            ids = ids_of(message)
            holes = {hole[1:-1]: f"<{hole[1:-1]}>" for hole in HOLE.findall(ids[-1])}
            text = ntr(ids[0], ids[1], 2, **holes) if len(ids) > 1 else tr(ids[0], **holes)
            assert "{" not in text
            assert all(value in text for value in holes.values()), text
            if lang != "en" and WORDS.search(ids[0]):
                assert CHINESE.search(text), text


def test_a_number_chooses_the_form() -> None:
    with in_language("en"):
        assert [ntr("{count} GPU", "{count} GPUs", count) for count in (1, 2000)] == ["1 GPU", "2,000 GPUs"]


def test_a_chinese_sentence_has_blanks_only_beside_latin_letters_and_digits() -> None:
    sentence = "prefill of {tokens} tokens takes {time}"

    with in_language("zh"):
        assert tr(sentence, tokens="2,048", time="30 ms") == "2,048 个 token 的 prefill 用时 30 ms"
        assert tr(sentence, tokens="任意", time="未知") == "任意个 token 的 prefill 用时未知"


def test_a_kept_sentence_speaks_the_language_in_which_it_is_read() -> None:
    kept = Sentence("{path}: is empty; measure it again", path="x")

    assert str(kept) == "x: is empty; measure it again"
    with in_language("zh"):
        assert str(kept) == "x：为空；请重新测量"
    assert tr("a sentence that nobody translated") == "a sentence that nobody translated"


def test_no_sentence_of_the_report_goes_past_the_catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rate in (8.0, 16.0):
        for topology in Topology:
            folder = tmp_path / f"{rate:g}" / topology
            write_realistic(folder, topology, rate=rate, requests=30, tokens=4, simulated=True)
    write_run(tmp_path / "failing", [request(0), failed(1, message="x")])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/manifest.json").write_text("{}")
    monkeypatch.setattr(language, "catalogue", lambda _: Marking())

    written = write_report(load_tree([tmp_path]), tmp_path / "report", "", "zh")

    prose = prose_of(written.markdown)
    assert prose.count("⟦") > 500
    assert [part for part in unmarked(prose) if WORDS.search(part)] == []
    assert [part for part in unmarked(prose_of(written.html)) if WORDS.search(part)] == []
    texts = [prose_of(path) for path in (tmp_path / "report").rglob("*.svg")]
    assert len(texts) > 20
    assert [part for text in texts for part in unmarked(text) if WORDS.search(part)] == []


# Words of matplotlib's, of rich and of SVG, which no reader sees.
MATPLOTLIB = {
    "bold reverse",
    "offset points",
    "upper left",
    "upper right",
    "lower left",
    r'<svg viewBox="\1" role="presentation">',
}


FOLDERS = (
    *(PACKAGE / name for name in ("doubts", "tables", "conclusions", "plots", "numbers")),
    *(Path(pd_planner.__file__).parent / name for name in ("report", "confidence", "search")),
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_no_sentence_in_the_code_goes_past_the_catalogues(folder: Path) -> None:
    known = {english for message in WRITER["extracted"]() if message.id for english in ids_of(message)}
    found = [
        f"{path.relative_to(folder)}:{line}: {text}"
        for path in sorted(folder.rglob("*.py"))
        for line, text in strings(path)
        if WORDS.search(text) and text not in MATPLOTLIB | known
    ]

    assert found == []
