"""The run folder on disk: what exists, what may be replaced, and files written in an order that survives a kill."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.folders import FolderError, check_file, check_folder, unwritable
from pd_contracts.records import (
    GPU,
    MANIFEST,
    REQUESTS,
    SUMMARY,
    Manifest,
    RecordError,
    RequestRecord,
    read_json,
    read_lines,
    write_json,
)
from pd_loadgen.results.manifests import EXIT_COMPLETE, exit_status

# Disk space reserved for manifest and summary: on a full disk records are lost, but the manifest can still say why.
_RESERVE: Final = ".reserve"
RESERVED_BYTES: Final = 256 * 1024
_FILES: Final = (MANIFEST, REQUESTS, GPU, SUMMARY, _RESERVE)


class _Served(msgspec.Struct):
    completed: int


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


def check(path: Path, *, overwrite: bool = False) -> None:
    """See whether a run may be written to a folder, before anything is started; nothing is left behind.

    Raises:
        FolderError: if it holds a run, or cannot be written; the sentence has the remedy.
    """
    check_folder(path)
    _refuse_run(path, overwrite=overwrite)
    for name in _FILES:
        check_file(path / name)


class RunFolder:
    """One run's folder, open for writing."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Make the folder; files of an earlier run are removed only if `overwrite` says so.

        Raises:
            FolderError: if it holds a run, or cannot be written.
        """
        self.path = path
        _refuse_run(path, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                (path / name).unlink(missing_ok=True)
            (path / _RESERVE).write_bytes(bytes(RESERVED_BYTES))
            (path / REQUESTS).touch()
        except OSError as error:
            self.release()  # a part of the reserve would only fill the disk more
            raise unwritable(path, error) from error

    @property
    def gpu(self) -> Path:
        """Where the monitor's recording goes."""
        return self.path / GPU

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest of a run that begins.

        Raises:
            FolderError: if it cannot be written; the reserved disk space is free again.
        """
        try:
            self.write_manifest(manifest)
        except OSError as error:
            self.release()
            raise unwritable(self.path, error) from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Write or replace the manifest."""
        write_json(self.path / MANIFEST, manifest)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write or replace the summary."""
        write_json(self.path / SUMMARY, summary)

    def append(self, lines: Iterable[bytes]) -> None:
        """Append encoded request records in one write, so that a kill loses a part of one line at most.

        Raises:
            FolderError: if they do not fit; whole lines that did are kept, and no part of one.
        """
        data = b"".join(lines)
        if not data:
            return
        path, written = self.path / REQUESTS, 0
        size = path.stat().st_size
        try:
            with path.open("ab", buffering=0) as file:
                while written < len(data):
                    written += file.write(memoryview(data)[written:])
        except OSError as error:
            with suppress(OSError):  # not even shortening works: the error below reports it
                os.truncate(path, size + data.rfind(b"\n", 0, written) + 1)
            raise unwritable(path, error) from error

    def release(self) -> None:
        """Free the disk space reserved for manifest and summary."""
        with suppress(OSError):  # a folder that refused it holds none
            (self.path / _RESERVE).unlink(missing_ok=True)

    def read(self) -> list[RequestRecord]:
        return list(read_lines(self.path / REQUESTS, RequestRecord))


def _refuse_run(path: Path, *, overwrite: bool) -> None:
    if _holds_run(path) and not overwrite:
        msg = f"{path} already holds a run: choose another --out, or replace it with --overwrite"
        raise FolderError(msg)


def holds_complete_run(path: Path) -> bool:
    """Whether a folder holds a run that ended as it should: nothing was stopped, something was served, and the client was in time.

    Raises:
        FolderError: if its files cannot be read, because then it may be one.
    """
    if not (path / MANIFEST).exists() or not (path / SUMMARY).exists():
        return False
    try:
        manifest, summary = read_json(path / MANIFEST, Manifest), read_json(path / SUMMARY, _Served)
        return exit_status(manifest, summary.completed) == EXIT_COMPLETE
    except RecordError as error:
        msg = f"{error}: choose another --out, or replace it with --overwrite"
        raise FolderError(msg) from error


def _holds_run(path: Path) -> bool:
    """An attempt that recorded no request (for example because the server was down) does not count as a run."""
    requests = path / REQUESTS
    return (path / SUMMARY).exists() or (requests.exists() and requests.stat().st_size > 0)
