"""Recorded traffic: when requests came and how long they were. Nothing of a trace is its text, so prompts are made to its lengths.

Formats, told apart by the first line:

- Mooncake, JSON lines: `timestamp` in ms, `input_length`, `output_length`, and `hash_ids`, one a block of 512 prompt tokens; equal
  ids are equal blocks, so prefixes that the traffic shared are shared again.
- BurstGPT, CSV: `Timestamp` in s, `Request tokens`, `Response tokens`. Rows without a response (failures) are left out.
- Azure's LLM inference traces, CSV: `TIMESTAMP` as date and time, `ContextTokens`, `GeneratedTokens`.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

# Mooncake's block: 512 tokens an id.
BLOCK_TOKENS: Final = 512


class TraceError(ValueError):
    """A trace cannot be read; the message is `file:line: what is wrong`."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One request of a trace; `offset` in seconds from the trace's first, `blocks` names the prompt's blocks if known."""

    offset: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class _Mooncake(msgspec.Struct):
    timestamp: float
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int] = []


def read(path: Path, *, scale: float = 1.0, duration: float = float("inf")) -> list[Arrived]:
    """The requests of a trace in the order of their arrival, those whose scaled offset is below `duration`.

    Args:
        path: the file.
        scale: factor on all times: 0.5 replays twice as fast.
        duration: seconds of the replay.

    Raises:
        TraceError: if the file cannot be read, is of no known format, or has a broken line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: {error}"
        raise TraceError(msg) from error
    raw = sorted(_rows(path, lines), key=lambda row: row.offset)
    if not raw:
        msg = f"{path}:1: the trace has no request"
        raise TraceError(msg)
    first = raw[0].offset
    scaled = (
        Arrived((row.offset - first) * scale, row.input_tokens, row.output_tokens, row.blocks)
        for row in raw
        if row.output_tokens > 0
    )
    return [row for row in scaled if row.offset < duration]


def _rows(path: Path, lines: Sequence[str]) -> Iterator[Arrived]:
    head = lines[0].lstrip("\ufeff") if lines else ""
    columns = next(csv.reader([head]), [])
    read_line: Callable[[str], Arrived]
    if head.startswith("{"):
        read_line, begin = _mooncake, 0
    elif {"Timestamp", "Request tokens", "Response tokens"} <= set(columns):
        read_line, begin = _table(columns, ("Timestamp", "Request tokens", "Response tokens"), float), 1
    elif {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(columns):
        read_line, begin = _table(columns, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _seconds), 1
    else:
        msg = f"{path}:1: neither Mooncake's JSON lines nor a table with the columns of BurstGPT or Azure"
        raise TraceError(msg)
    for number, line in enumerate(lines[begin:], begin + 1):
        if line.strip():
            try:
                yield read_line(line)
            except (ValueError, IndexError, msgspec.MsgspecError) as error:
                msg = f"{path}:{number}: {error}"
                raise TraceError(msg) from error


def _mooncake(line: str) -> Arrived:
    row = msgspec.json.decode(line, type=_Mooncake)
    if row.hash_ids and len(row.hash_ids) * BLOCK_TOKENS < row.input_length:
        msg = f"{len(row.hash_ids)} hash_ids are too few for {row.input_length} tokens in blocks of {BLOCK_TOKENS}"
        raise ValueError(msg)
    return Arrived(row.timestamp / 1e3, row.input_length, row.output_length, tuple(row.hash_ids))


def _table(
    columns: Sequence[str], names: tuple[str, str, str], seconds: Callable[[str], float]
) -> Callable[[str], Arrived]:
    when, inputs, outputs = (columns.index(name) for name in names)

    def read_line(line: str) -> Arrived:
        cells = next(csv.reader([line]))
        if len(cells) != len(columns):
            msg = f"{len(cells)} columns, where the first line names {len(columns)}"
            raise ValueError(msg)
        row = Arrived(seconds(cells[when]), int(cells[inputs]), int(cells[outputs]))
        if row.input_tokens < 1 or row.output_tokens < 0:
            msg = f"{row.input_tokens} prompt tokens and {row.output_tokens} output tokens are no request"
            raise ValueError(msg)
        return row

    return read_line


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text[:26])  # the traces have seven digits of a second, Python reads six
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
