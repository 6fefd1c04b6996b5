"""A trace file for finding delays: one line per event, with the monotonic clock that all processes of a host share."""

import threading
import time
from pathlib import Path

FLUSH_LINES = 64


class Trace:
    """Writes `seconds event key` to a file, if one is set. Any thread may call `note`."""

    def __init__(self, path: str) -> None:
        """With an empty path nothing is written."""
        self.on = bool(path)
        self._path = Path(path)
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def note(self, event: str, key: str) -> None:
        """Write that an event happened to a key now."""
        if not self.on:
            return
        with self._lock:
            self._lines.append(f"{time.monotonic():.6f} {event} {key}\n")
            full = len(self._lines) >= FLUSH_LINES
        if full:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        if lines:
            with self._path.open("a") as file:
                file.writelines(lines)
