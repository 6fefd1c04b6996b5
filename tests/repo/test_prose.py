"""The check of prose in `make lint` finds the phrases that it is for, and changes only line breaks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import markdown
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="prose", scope="module")
def _prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_prose", ROOT / "docs/check_prose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_prose"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "said",
    [
        "12.9 requests/s and GPU",
        "3.90× lower",
        "It depends on what you promise: a first token",
        "nothing that decides here speaks for plain engines",
        "its doubts first",
        "a device that this host has not.",
        "keys belong into .env.local",
        "Nobody's joules",
        "a crowd of rude clients",
        "both pay the same hop",
        "to all of these what vLLM is",
        "Without one, that is a 400 that says why.",
        "says it in the same words at thrice the cost",
        "it still has the KV, and its wits",
        "served by nobody's measure",
        "an answer that is none",
        "joules a token",
        "within 5 % of it",
        'f"{share:g} %"',
        "about ±40\u202f%.",
    ],
)
def test_a_phrase_that_readers_stumble_over_is_found(
    prose: ModuleType, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(said)

    assert list(prose.phrases(page)), said


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("One sentence. Another\nover two lines.\n", "One sentence.\nAnother over two lines.\n"),
        ("- An item. `code` begins a sentence.\n", "- An item.\n  `code` begins a sentence.\n"),
        ("1. First. Then\n   more.\n2. Second.\n", "1. First.\n   Then more.\n2. Second.\n"),
        (
            "It takes 0.5 s, e.g. On a GPU (see below. Always).\n",
            "It takes 0.5 s, e.g. On a GPU (see below. Always).\n",
        ),
        ("| a. B | c |\n", "| a. B | c |\n"),
        ("```sh\nOne. Two\nthree\n```\n", "```sh\nOne. Two\nthree\n```\n"),
        (
            "Run:\n\n    make venv\n    pd-proxy # A comment. More\n",
            "Run:\n\n    make venv\n    pd-proxy # A comment. More\n",
        ),
        ("**怎么读。** 先看警告。再看结论，\n然后看图。\n", "**怎么读。** 先看警告。\n再看结论，然后看图。\n"),
        ("*Equal* ends here.\npdstack goes on.\n", "*Equal* ends here.\npdstack goes on.\n"),
    ],
)
def test_markdown_gets_one_sentence_a_line(prose: ModuleType, before: str, after: str) -> None:
    assert prose.reflowed(before) == after
    assert prose.reflowed(after) == after


@pytest.mark.parametrize("page", ["README.md", "docs/beginner.md", "docs/proxy.md", "k8s/README.md"])
def test_new_ends_of_lines_change_nothing_that_is_shown(prose: ModuleType, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    wrapped = text.replace(". ", ".\n") if "|" not in text else text

    def shown(source: str) -> str:
        return " ".join(markdown.markdown(source, extensions=["tables", "fenced_code"]).split())

    assert shown(prose.reflowed(wrapped)) == shown(wrapped)
