"""Recorded traffic: when requests came and how long they were. A trace has no text, so prompts of its lengths are generated.

Formats, told apart by the first line:

- Mooncake, JSON lines: `timestamp` in ms, `input_length`, `output_length`, and `hash_ids`, one per block of 512 prompt tokens; equal
  ids are equal blocks, so prefixes that the traffic shared are shared again.
- Qwen's traces of Alibaba Cloud Model Studio, JSON lines with `chat_id`: as Mooncake, but seconds, and blocks of 16 tokens.
- BurstGPT, CSV: `Timestamp` in s, `Request tokens`, `Response tokens`; with and without sessions.
- Azure's LLM inference traces of 2023 and 2024, CSV: `TIMESTAMP` as date and time, `ContextTokens`, `GeneratedTokens`.

Rows without a response are requests that failed: they are left out and counted.
Requests that are not in the order of their times are put into it, and counted.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from pd_contracts.libraries import plain
from pd_contracts.sentences import Clause, SentenceError
from pd_loadgen.prompts.datasets import MOST_TOKENS_OF_A_TEXT
from pd_loadgen.prompts.files import FileError, at_line, decoded, lines_of, text_of

MOONCAKE_BLOCK: Final = 512
QWEN_BLOCK: Final = 16
_BURST_GPT: Final = ("Timestamp", "Request tokens", "Response tokens")
_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# The traces have seven digits of a second, Python reads six.
_FRACTION: Final = re.compile(r"(\.\d{6})\d+")
_COUNT: Final = re.compile(r"\d+(?:\.0*)?")


@dataclass(frozen=True, slots=True)
class Arrived:
    """One request of a trace; `offset` in seconds from the trace's first, `blocks` names the prompt's blocks if known."""

    offset: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = MOONCAKE_BLOCK


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests in the order of their arrival, and what of the file is not among them."""

    requests: list[Arrived]
    notes: list[Clause]


class _RowError(SentenceError, ValueError):
    """What is wrong with a row."""


class _JsonRow(msgspec.Struct):
    timestamp: float
    input_length: Annotated[int, msgspec.Meta(ge=0)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int] | None = None
    chat_id: Any = None


def read(path: Path, *, scale: float = 1.0, duration: float = float("inf")) -> Trace:
    """The requests of a trace whose scaled offset is below `duration`.

    Args:
        path: the file.
        scale: factor on all times: 0.5 replays twice as fast.
        duration: seconds of the replay.

    Raises:
        FileError: if the file cannot be read, is of no known format, or has a broken line.
    """
    found = list(_rows(path, text_of(path)))
    if not found:
        raise at_line(path, 1, Clause("the trace has no request"))
    rows = sorted((row for _, row in found), key=lambda row: row.offset)
    first = rows[0].offset
    served = [row for row in rows if row.output_tokens > 0]
    scaled = [
        Arrived((row.offset - first) * scale, row.input_tokens, row.output_tokens, row.blocks, row.block_tokens)
        for row in served
    ]
    kept = [row for row in scaled if row.offset < duration]
    notes = (*_order(path.name, found), *_notes(path.name, len(rows) - len(served), len(served), len(kept), duration))
    return Trace(kept, list(notes))


def _order(name: str, found: Sequence[tuple[int, Arrived]]) -> Iterator[Clause]:
    """Requests that come before the one above them, which logs of several servers in one file have."""
    served = [(number, row.offset) for number, row in found if row.output_tokens > 0]
    early = [number for (_, before), (number, at) in pairwise(served) if at < before]
    if early:
        yield Clause(
            "trace {name}: line {line} is earlier than the one above it (lines like this: {count}); requests are sent in the order of their times",
            name=name,
            count=len(early),
            line=early[0],
        )


def _notes(name: str, failed: int, served: int, kept: int, duration: float) -> Iterator[Clause]:
    if failed:
        yield Clause("trace {name}: rows without a response were left out ({failed} in all)", name=name, failed=failed)
    if kept < served:
        yield Clause(
            "trace {name}: {kept} of {served} requests come in the first {duration} s; --duration inf replays all",
            name=name,
            kept=kept,
            served=served,
            duration=f"{duration:g}",
        )


def _rows(path: Path, text: str) -> Iterator[tuple[int, Arrived]]:
    """The rows with the numbers of their lines."""
    lines = lines_of(text)
    head = lines[0][1] if lines else ""
    if head.lstrip().startswith("{"):
        for number, line in lines:
            row = decoded(path, number, line, _JsonRow)
            yield number, _placed(path, number, partial(_json, row))
        return
    read_cells = _table(path, [cell.strip() for cell in _cells(path, 1, head)])
    for number, line in lines[1:]:
        yield number, _placed(path, number, partial(read_cells, _cells(path, number, line)))


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:  # a cell of more than 131,072 characters
        raise at_line(path, number, plain(error)) from error


def _placed(path: Path, number: int, read_row: Callable[[], Arrived]) -> Arrived:
    """A row as a request; an error names file and line."""
    try:
        row = read_row()
        _check(row)
    except (ValueError, IndexError) as error:
        raise at_line(path, number, error) from error
    return row


def _check(row: Arrived) -> None:
    if not math.isfinite(row.offset):
        raise _RowError("the time is not a number")
    if row.output_tokens > 0 and row.input_tokens < 1:
        raise _RowError(
            "{prompt} prompt tokens and {output} output tokens do not make a request",
            prompt=row.input_tokens,
            output=row.output_tokens,
        )
    longest = max(row.input_tokens, row.output_tokens)
    if longest > MOST_TOKENS_OF_A_TEXT:
        raise _RowError(
            "{tokens} tokens are more than any model reads or writes; at most {most} are sent",
            tokens=f"{longest:,}",
            most=f"{MOST_TOKENS_OF_A_TEXT:,}",
        )


def _json(row: _JsonRow) -> Arrived:
    qwen = row.chat_id is not None
    block = QWEN_BLOCK if qwen else MOONCAKE_BLOCK
    _not_below_zero(row.timestamp)
    ids = tuple(row.hash_ids or ())
    if ids and len(ids) * block < row.input_length:
        raise _RowError(
            "{count} hash_ids are too few for {tokens} tokens in blocks of {block}",
            count=len(ids),
            tokens=row.input_length,
            block=block,
        )
    return Arrived(row.timestamp / (1 if qwen else 1e3), row.input_length, row.output_length, ids, block)


def _table(path: Path, columns: Sequence[str]) -> Callable[[list[str]], Arrived]:
    for names, seconds in ((_BURST_GPT, _number), (_AZURE, _seconds)):
        if set(names) <= set(columns):
            return _reader(columns, names, seconds)
    if not any(columns):
        raise FileError("{path}: the file is empty", path=path)
    raise FileError(
        "{path}:1: neither JSON lines of Mooncake or Qwen nor a table with the columns {burst_gpt} (BurstGPT) or {azure} (Azure), separated by commas",
        path=path,
        burst_gpt=", ".join(_BURST_GPT),
        azure=", ".join(_AZURE),
    )


def _reader(
    columns: Sequence[str], names: tuple[str, str, str], seconds: Callable[[str], float]
) -> Callable[[list[str]], Arrived]:
    when, inputs, outputs = (columns.index(name) for name in names)

    def read_row(cells: list[str]) -> Arrived:
        if len(cells) != len(columns):
            raise _RowError(
                "{cells} columns, where the first line names {columns}", cells=len(cells), columns=len(columns)
            )
        return Arrived(seconds(cells[when].strip()), _count(cells[inputs]), _count(cells[outputs]))

    return read_row


def _count(text: str) -> int:
    """A number of tokens; spreadsheets write 472.0, and an empty cell or NaN is that of a request that failed."""
    plain = text.strip()
    if plain.lower() in ("", "nan", "null", "none"):
        return 0
    if _COUNT.fullmatch(plain) is None:
        raise _RowError("{text} is not a number of tokens", text=repr(plain))
    return int(plain.partition(".")[0])


def _number(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise _RowError("{text} is not a number of seconds", text=repr(text)) from error
    _not_below_zero(seconds)
    return seconds


def _not_below_zero(time: float) -> None:
    """A time since some beginning is none before it; more often it is a marker for a missing one."""
    if time < 0:
        raise _RowError("the time {time} is below 0", time=f"{time:g}")


def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(r"\1", text))
    except ValueError as error:
        raise _RowError("{text} is not a date and time", text=repr(text)) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
