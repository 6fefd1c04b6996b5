"""Keeps ExampleConnector's shared folder from filling up: the connector writes one folder per prompt and never deletes any.

What is older than the given age goes, and the oldest goes first while the file system is more than 80% full, but never what
is younger than 10 s: decode may be about to read it. Only requests that waited longer lose their KV; it is then computed again.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

FULL = 0.8
YOUNG_S = 10.0
INTERVAL_S = 5.0


def expired(entries: list[tuple[float, Path]], now: float, max_age_s: float) -> Iterator[Path]:
    """Of (modification time, path), the paths that are too old."""
    return (path for modified, path in entries if now - modified > max_age_s)


def clean(folder: Path, max_age_s: float) -> int:
    """Delete once; returns how many entries went."""
    entries = sorted(_entries(folder))
    doomed = list(expired(entries, time.time(), max_age_s))
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    for modified, path in entries[len(doomed) :]:
        usage = shutil.disk_usage(folder)
        if usage.used <= FULL * usage.total or time.time() - modified < YOUNG_S:
            break
        shutil.rmtree(path, ignore_errors=True)
        doomed.append(path)
    return len(doomed)


def _entries(folder: Path) -> Iterator[tuple[float, Path]]:
    for path in folder.iterdir():
        try:
            yield path.stat().st_mtime, path
        except FileNotFoundError:
            continue  # another prefill's cleaner was faster


def main() -> None:
    """Run as `python3 -m pd_engine.cleaner PARENT FOLDER MAX_AGE_S`; starts with an empty folder, ends with its parent."""
    parent, folder, age = sys.argv[1:]
    clean(Path(folder), 0)  # KV of an earlier model in the same folder would be read as this one's
    while os.getppid() == int(parent):
        time.sleep(INTERVAL_S)
        clean(Path(folder), float(age))


if __name__ == "__main__":
    main()
