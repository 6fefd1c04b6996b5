"""The run folder on disk: what exists, what may be replaced, and the files in the order that a kill forgives."""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pd_contracts.records import (
    GPU,
    MANIFEST,
    REQUESTS,
    SUMMARY,
    Manifest,
    RequestRecord,
    read_lines,
    write_json,
)

_FILES: Final = (MANIFEST, REQUESTS, GPU, SUMMARY)


class FolderError(OSError):
    """The run folder cannot be used; the message is one sentence."""


def new_path(run_id: str, environment: Mapping[str, str] | None = None) -> Path:
    """A folder for a run that was given none: below RESULTS_DIR, named like the run."""
    return Path((os.environ if environment is None else environment).get("RESULTS_DIR") or "results") / run_id


def next_free(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, … if it holds a run already."""
    number = 1
    candidate = path
    while _holds_run(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def make_run_id(label: str) -> str:
    """A name that sorts by time: label, UTC time, and four digits against two runs in one second."""
    name = "".join(char if char.isalnum() else "-" for char in label).strip("-") or "run"
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"


class RunFolder:
    """One run's folder, open for writing."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Make the folder; files of an earlier run are removed only if `overwrite` says so.

        Raises:
            FolderError: if it holds a run, or cannot be written.
        """
        self.path = path
        if _holds_run(path) and not overwrite:
            msg = f"{path} already holds a run: choose another --out, or replace it with --overwrite"
            raise FolderError(msg)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                (path / name).unlink(missing_ok=True)
            (path / REQUESTS).touch()
        except OSError as error:
            msg = f"{path} cannot be written: {error.strerror}"
            raise FolderError(msg) from error

    @property
    def gpu(self) -> Path:
        """Where the monitor's recording goes."""
        return self.path / GPU

    def write_manifest(self, manifest: Manifest) -> None:
        """Write or replace the manifest."""
        write_json(self.path / MANIFEST, manifest)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write or replace the summary."""
        write_json(self.path / SUMMARY, summary)

    def append(self, lines: Iterable[bytes]) -> None:
        """Append encoded request records in one write, so that a kill loses a part of one line at most."""
        if data := b"".join(lines):
            with (self.path / REQUESTS).open("ab", buffering=0) as file:
                file.write(data)

    def read(self) -> list[RequestRecord]:
        """All request records so far."""
        return list(read_lines(self.path / REQUESTS, RequestRecord))


def _holds_run(path: Path) -> bool:
    """An attempt that recorded no request (the server was not there) is no run."""
    requests = path / REQUESTS
    return (path / SUMMARY).exists() or (requests.exists() and requests.stat().st_size > 0)
