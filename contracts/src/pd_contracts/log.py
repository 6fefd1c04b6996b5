"""Logging for every service: one line per event on stderr, as JSON unless stderr is a terminal."""

import json
import logging
import sys
import time
from functools import lru_cache
from typing import Any

import msgspec

# The end of a time; to look it up is several times as fast as to format it.
_MILLISECONDS = tuple(f".{number:03d}Z" for number in range(1000))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _entry(created: float, level: str, logger: str, message: str, extras: dict[str, Any]) -> dict[str, Any]:
    return {"time": _stamp(created), "level": level, "logger": logger, "message": message, **extras}


def _stamp(created: float) -> str:
    return _to_the_second(int(created)) + _MILLISECONDS[int(created % 1 * 1e3)]


@lru_cache(maxsize=4)
def _to_the_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what a call passes as `extra` becomes keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Write time (UTC), level, logger, message, extras and, if any, the traceback."""
        entry = _entry(record.created, record.levelname.lower(), record.name, record.getMessage(), _extras(record))
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


class Event:
    """One kind of line at level INFO that is written thousands of times a second; `logging` would write the same line at three times the cost."""

    def __init__(self, logger: str, message: str) -> None:
        """`message` is always the same; what differs is in the extras, of which there is at least one."""
        self._logger = logging.getLogger(logger)
        self._message = message
        # What every line has between its time and its extras.
        self._same = msgspec.json.encode({"level": "info", "logger": logger, "message": message}).decode()[1:-1]

    def __call__(self, extras: msgspec.Struct) -> None:
        if not self._logger.isEnabledFor(logging.INFO):
            return
        handler = _json_handler()
        try:
            if handler is not None:
                told = msgspec.json.encode(extras).decode()[1:]
                stream = handler.stream
                stream.write(f'{{"time":"{_stamp(time.time())}",{self._same},{told}{handler.terminator}')
                stream.flush()
                return
        except (OSError, ValueError, TypeError):
            pass  # the stream is closed, or cannot encode the line: `logging` handles both
        self._logger.info(self._message, extra=msgspec.to_builtins(extras))


def _json_handler() -> "logging.StreamHandler[Any] | None":
    """The handler that `set_up` made, if it writes JSON and nobody added another."""
    handlers = logging.root.handlers
    if (
        len(handlers) == 1
        and isinstance(handlers[0], logging.StreamHandler)
        and type(handlers[0].formatter) is JsonFormatter
    ):
        return handlers[0]
    return None


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
