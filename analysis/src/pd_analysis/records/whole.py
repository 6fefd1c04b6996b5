"""Files of records that their writer finished."""

import os
from pathlib import Path

from pd_analysis.words.language import mark
from pd_contracts.libraries import plain
from pd_contracts.records import RecordError


def refuse_cut(path: Path) -> None:
    """A JSONL file whose writer was killed is partial, even if the lines that it has are good.

    Raises:
        RecordError: if it is empty, ends within a line, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            last = file.read()
    except OSError as error:
        raise RecordError("{path}: {reason}", path=path, reason=plain(error)) from error
    if last != b"\n":
        message = (
            mark("{path}: is cut in its last line; measure it again")
            if last
            else mark("{path}: is empty; measure it again")
        )
        raise RecordError(message, path=path)
