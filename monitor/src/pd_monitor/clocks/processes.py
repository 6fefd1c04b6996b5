"""Processes and their children: an engine is started as one process and computes in others."""

from collections.abc import Iterable
from pathlib import Path


def with_children(pids: Iterable[int], proc: Path = Path("/proc")) -> set[int]:
    """The processes and all that descend from them, as far as this host shows them."""
    parents = _parents(proc)
    family = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _parents(proc: Path) -> dict[int, int]:
    found = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The name stands in brackets and may hold anything, brackets too.
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it ended while we looked
    return found
