"""Prompts from a Hugging Face data set, through their library, which is an extra: `pip install pd-loadgen[huggingface]`.

Rows are read one by one as they are needed, so a large data set is not downloaded whole. What a row asks is found by the names that
such data sets use; `--dataset-column` names another column.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from pd_loadgen.prompts.corpora import CorpusError, Entry, Speech, first_exchange
from pd_loadgen.prompts.token_estimate import estimated_tokens

# A text, in the order of preference; the next ones hold the answer.
ASKS: Final = ("prompt", "question", "instruction", "problem", "query", "text", "article", "input")
ANSWERS: Final = ("output", "answer", "response", "completion", "highlights")
CONVERSATIONS: Final = ("conversations", "conversation", "messages")


def read(name: str, split: str, column: str, count: int) -> list[Entry]:
    """The first `count` usable prompts of a split; `name` is `owner/name`, a folder, or either with `:configuration`.

    Raises:
        CorpusError: if the library is missing, or the data set cannot be read or has nothing to send.
    """
    try:
        import datasets  # noqa: PLC0415  an extra, which only this needs
    except ImportError:
        msg = "dataset huggingface needs its library: install pd-loadgen[huggingface]"
        raise CorpusError(msg) from None
    path, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(path, configuration or None, split=split, streaming=True)
        entries = list(islice(entries_of(rows, column), count))
    except (OSError, ValueError, RuntimeError) as error:
        # the library's own errors are of these kinds: no such data set, split or file, no network
        msg = f"data set {name}, split {split}: {' '.join(str(error).split())[:300]}"
        raise CorpusError(msg) from error
    if not entries:
        msg = f"data set {name}, split {split}: has no prompt that can be sent; name the column with --dataset-column"
        raise CorpusError(msg)
    return entries


def entries_of(rows: Iterable[Mapping[str, Any]], column: str) -> Iterable[Entry]:
    """What rows ask; those without a prompt are left out."""
    return (entry for row in rows if (entry := entry_of(row, column)) is not None)


def entry_of(row: Mapping[str, Any], column: str) -> Entry | None:
    """One row as a prompt; None if it has none."""
    names = (column,) if column else (*CONVERSATIONS, *ASKS)
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return Entry(value, None, _answered(row))
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            return first_exchange([_speech(one) for one in value])
    return None


def _answered(row: Mapping[str, Any]) -> int | None:
    """The length of the row's answer, as ShareGPT's are taken; None leaves it to the options."""
    answer = next((row[name] for name in ANSWERS if isinstance(row.get(name), str) and row[name].strip()), None)
    return None if answer is None else estimated_tokens(answer)


def _speech(turn: Mapping[str, Any]) -> Speech:
    speaker, said = turn.get("from") or turn.get("role") or "", turn.get("value") or turn.get("content") or ""
    return Speech(str(speaker), said if isinstance(said, str) else "")
