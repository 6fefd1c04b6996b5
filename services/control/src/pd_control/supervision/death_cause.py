"""Which line of a dead process's log says why it died; no I/O."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

# Logs of vLLM and Python end with consequences of the error; the error itself is dozens of lines earlier.
_CONSEQUENCES: Final = (
    "Engine core initialization failed",
    "Engine core proc",
    "EngineDeadError",
    "EngineCore encountered",
    "WorkerProc initialization failed",
    "Executor failed",
    "SystemExit",
    "KeyboardInterrupt",
    "CancelledError",
    "BrokenPipeError",
    "ConnectionResetError",
    "resource_tracker",
)
_EXCEPTION: Final = re.compile(r"(?:^|\s)(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b:\s*\S")
# A program's own message ("pd-engine: MODEL is not set"), or any line that contains an error word.
_REFUSAL: Final = re.compile(r"^pd-\w+: |\berror\b|\bfatal\b|\bkilled\b", re.IGNORECASE)
# "(EngineCore pid=123) ERROR 11-20 23:58:01 [core.py:12] ", where each part may be missing.
_PREFIX: Final = re.compile(
    r"^(?:\([^()]*pid=\d+\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\d\d-\d\d \d\d:\d\d:\d\d\s+\[[^\]]*\]\s*)?"
)


def culprit(lines: Sequence[str]) -> str:
    """The last line with an error that is not a consequence of another one; empty if there is none."""
    plain = [_PREFIX.sub("", line).strip() for line in lines]
    errors = _causes(line for line in plain if _EXCEPTION.search(line))
    refusals = _causes(line for line in plain if _REFUSAL.search(line))
    said = errors or refusals
    return said[-1] if said else ""


def _causes(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if not any(mark in line for mark in _CONSEQUENCES)]
