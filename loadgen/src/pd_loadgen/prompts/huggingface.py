"""Prompts from a Hugging Face data set, through their library, which is an extra: `pip install pd-loadgen[huggingface]`.

Rows are read one by one as they are needed, so a large data set is not downloaded whole. The prompt's column is found by the names that
such data sets use; `--dataset-column` names another one.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pd_loadgen.prompts.corpora import CONVERSATIONS, Corpus, Entry, first_exchange, speeches
from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.tokenizer import TokenCounter

# A text, in the order of preference; the next ones hold the answer.
ASKS: Final = ("prompt", "question", "instruction", "problem", "query", "text", "article", "input")
ANSWERS: Final = ("output", "answer", "response", "completion", "highlights")


def read(name: str, split: str, column: str, count: int, counter: TokenCounter) -> Corpus:
    """The first `count` usable prompts of a split; `name` is `owner/name`, a folder, or either with `:configuration`.

    Raises:
        FileError: if the library is missing, or the data set cannot be read or has nothing to send.
    """
    try:
        import datasets  # noqa: PLC0415  an extra, which only this needs
    except ImportError:
        msg = "dataset huggingface needs its library: install pd-loadgen[huggingface]"
        raise FileError(msg) from None
    path, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(path, configuration or None, split=split, streaming=True)
        corpus = corpus_of(rows, column, count, counter)
    except (OSError, ValueError, RuntimeError) as error:
        # the library's own errors are of these kinds: no such data set, split or file, no network
        msg = f"data set {name}, split {split}: {' '.join(str(error).split())[:300]}"
        raise FileError(msg) from error
    if not corpus.entries:
        msg = f"data set {name}, split {split}: has no prompt that can be sent; name the column with --dataset-column"
        raise FileError(msg)
    return corpus


def corpus_of(rows: Iterable[Mapping[str, Any]], column: str, count: int, counter: TokenCounter) -> Corpus:
    """What the first rows ask, until there are `count` prompts."""
    corpus = Corpus("dataset huggingface", lengths=counter.source)
    for row in rows:
        corpus.take(entry_of(row, column, counter))
        if len(corpus.entries) >= count:
            break
    return corpus


def entry_of(row: Mapping[str, Any], column: str, counter: TokenCounter) -> Entry | str:
    """One row as a prompt; a reason if it has none."""
    names = (column,) if column else (*CONVERSATIONS, *ASKS)
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return Entry(value, None, _answered(row, counter))
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            return first_exchange(list(speeches(value)), counter)
    return "without a prompt"


def _answered(row: Mapping[str, Any], counter: TokenCounter) -> int | None:
    """The length of the row's answer, as ShareGPT's are taken; None leaves it to the options."""
    answer = next((row[name] for name in ANSWERS if isinstance(row.get(name), str) and row[name].strip()), None)
    return None if answer is None else counter.count(answer)
