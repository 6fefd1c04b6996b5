"""Data sets of Hugging Face: what a row asks, and what happens without library or data set.

The library is an extra that tests do not have, so a module with its one function stands in for it.
"""

import sys
from types import ModuleType
from typing import Any

import pytest

from pd_loadgen.prompts import huggingface
from pd_loadgen.prompts.corpora import Entry
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.tokenizer import ESTIMATE, find
from pd_loadgen.workload import contents
from pd_loadgen.workload.options import Options

LONG = "one two three four five six"


@pytest.mark.parametrize(
    ("row", "column", "entry"),
    [
        ({"prompt": LONG}, "", Entry(LONG, None, None)),
        ({"question": LONG, "answer": "a b c d e f g h i j"}, "", Entry(LONG, None, 10)),
        ({"instruction": LONG, "output": ""}, "", Entry(LONG, None, None)),
        ({"prompt": "not this", "body": LONG}, "body", Entry(LONG, None, None)),
        (
            {"conversations": [{"from": "human", "value": LONG}, {"from": "gpt", "value": LONG}]},
            "",
            Entry(LONG, None, 6),
        ),
        (
            {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG}]},
            "",
            Entry(LONG, None, 6),
        ),
        ({"messages": [{"role": "assistant", "content": LONG}]}, "", "without a first question and its answer"),
        ({"prompt": "  ", "id": 3}, "", "without a prompt"),
        ({"prompt": LONG}, "absent", "without a prompt"),
    ],
)
def test_what_a_row_asks_is_found_by_usual_names(row: dict[str, Any], column: str, entry: Entry | str) -> None:
    assert huggingface.entry_of(row, column, find(ESTIMATE, "")) == entry


class Library(ModuleType):
    """Stands in for `datasets`."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__("datasets")
        self.rows, self.taken = rows, 0
        self.asked: tuple[object, ...] = ()

    def load_dataset(self, path: str, name: str | None, *, split: str, streaming: bool) -> Any:
        self.asked = (path, name, split, streaming)
        if path == "absent":
            raise FileNotFoundError("Dataset 'absent' doesn't exist on the Hub")
        return self._walk()

    def _walk(self) -> Any:
        for row in self.rows:
            self.taken += 1
            yield row


def test_rows_are_taken_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library([{"prompt": f"{LONG} {number}"} for number in range(100)])
    monkeypatch.setitem(sys.modules, "datasets", library)
    options = Options(
        dataset=Dataset.HUGGINGFACE, dataset_path="owner/name:small", dataset_split="test", output_tokens=9
    )

    made = contents.draw(options, 3, corpus=contents.read(options, "", 3))

    assert [content.prompt for content in made] == [f"{LONG} {number}" for number in range(3)]
    assert {content.output_tokens for content in made} == {9}
    assert library.asked == ("owner/name", "small", "test", True)
    assert library.taken == 3


def test_a_short_data_set_is_used_again_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Library([{"prompt": "a b"}, {"prompt": "c d"}]))

    options = Options(dataset=Dataset.HUGGINGFACE, dataset_path="owner/name")

    made = contents.draw(options, 3, corpus=contents.read(options, "", 3))

    assert [content.prompt for content in made] == ["a b", "c d", "a b"]


@pytest.mark.parametrize(
    ("library", "name", "sentence"),
    [
        (None, "owner/name", r"install pd-loadgen\[huggingface\]"),
        (Library([]), "absent", "doesn't exist on the Hub"),
        (Library([{"id": 1}]), "owner/name", "--dataset-column"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, library: ModuleType | None, name: str, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", library)

    with pytest.raises(FileError, match=sentence):
        huggingface.read(name, "train", "", 1, find(ESTIMATE, ""))


@pytest.mark.parametrize(
    "given", [{"dataset": Dataset.HUGGINGFACE}, {"dataset_split": "test"}, {"dataset_column": "prompt"}]
)
def test_options_that_do_not_belong_together_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dataset"):
        Options(**given)
