"""Counters since the last read, for the engine's metrics."""

import threading
from collections import defaultdict
from typing import Any, Final

# Seconds; a copy of 268 MB takes 1 ms over NVLink and 300 ms over a slow network.
BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Stats:
    """Counters, gauges and histograms by name and label value. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._gauges: dict[tuple[str, str], float] = {}
        self._spans: dict[tuple[str, str], list[float]] = {}
        self._changed = False

    def count(self, name: str, label: str = "", amount: float = 1) -> None:
        with self._lock:
            self._counts[name, label] += amount

    def gauge(self, name: str, label: str, value: float) -> None:
        with self._lock:
            self._changed |= self._gauges.get((name, label)) != value
            self._gauges[name, label] = value

    def gauges(self, name: str) -> dict[str, float]:
        """The gauge's values by label."""
        with self._lock:
            return {label: value for (found, label), value in self._gauges.items() if found == name}

    def span(self, name: str, label: str, seconds: float) -> None:
        with self._lock:
            self._spans.setdefault((name, label), []).append(seconds)

    def take(self) -> dict[str, Any] | None:
        """Return everything and reset all but the gauges; None if nothing happened. Plain lists, because it crosses processes."""
        with self._lock:
            if not (self._counts or self._spans or self._changed):
                return None
            self._changed = False
            found: dict[str, Any] = {
                "counts": [[*key, value] for key, value in self._counts.items()],
                "gauges": [[*key, value] for key, value in self._gauges.items()],
                "spans": [[*key, values] for key, values in self._spans.items()],
            }
            self._counts.clear()
            self._spans.clear()
        return found
