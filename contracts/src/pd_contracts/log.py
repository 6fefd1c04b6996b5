"""Logging for every service: one line an event on stderr, JSON where no person reads it."""

import json
import logging
import sys
import time
from typing import Any

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a call passes as `extra` becomes keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Write time (UTC), level, logger, message, extras and, if any, the traceback."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except UnicodeEncodeError:  # half a character, say from a file's name, which only an escape can write
            return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """A readable line with the extras behind the message."""

    def __init__(self) -> None:
        """Time, level letter, logger, message."""
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Append extras as key=value; to the message, so that a traceback stays below them."""
        return " ".join([super().formatMessage(record), *(f"{key}={value}" for key, value in _extras(record).items())])


def set_up(level: str = "INFO") -> None:
    """Send the root logger to stderr: text on a terminal, JSON elsewhere.

    Raises:
        ValueError: for an unknown level name.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
