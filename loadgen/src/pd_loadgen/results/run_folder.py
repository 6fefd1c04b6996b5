"""The run folder on disk: what exists, what may be replaced, and the files in the order that a kill forgives."""

import errno
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
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

# Room for manifest and summary, given back when they are written: a full disk costs records, not what explains it.
_RESERVE: Final = ".reserve"
RESERVED_BYTES: Final = 256 * 1024
_FILES: Final = (MANIFEST, REQUESTS, GPU, SUMMARY, _RESERVE)


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


def check(path: Path, *, overwrite: bool = False) -> None:
    """See whether a run may be written to a folder, before anything is started; nothing is left behind.

    Raises:
        FolderError: if it holds a run, or cannot be written; the sentence has the remedy.
    """
    existing = path
    try:
        existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        _refuse_run(path, overwrite=overwrite)
        with tempfile.TemporaryFile(dir=existing, prefix=".pd-loadgen-") as file:
            file.write(bytes(4096))
    except FolderError:
        raise
    except OSError as error:
        raise FolderError(_unwritable(existing, error)) from error
    if blocked := next((path / name for name in _FILES if _blocked(path / name)), None):
        raise FolderError(_unwritable(blocked, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))


def _blocked(path: Path) -> bool:
    return path.exists() and not os.access(path, os.W_OK)


def _unwritable(path: Path, error: OSError) -> str:
    """Why it cannot be written, and what to do about it."""
    return f"{path} cannot be written: {error.strerror or error}{_remedy(path, error)}"


def _remedy(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "; free some space there, or choose another --out"
    if error.errno == errno.EROFS:
        return "; it is on a read-only file system: choose another --out, or mount it writable"
    if error.errno not in (errno.EACCES, errno.EPERM):
        return "; choose another --out"
    try:
        owner = path.stat()
    except OSError:
        return "; choose another --out"  # it is below a folder that may not even be looked into
    user, group = os.getuid(), os.getgid()
    own = f"sudo chown -R {user}:{group} {path} (of a container: the folder that is mounted there)"
    # nobody should be advised to run as root
    other = f", or let the container run as its owner: PD_UID={owner.st_uid} and PD_GID={owner.st_gid} in .env"
    return f"; it belongs to user {owner.st_uid} and this runs as user {user}: {own}{other if owner.st_uid else ''}"


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
            raise FolderError(_unwritable(path, error)) from error

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
            with suppress(OSError):  # nothing better is left to do
                os.truncate(path, size + data.rfind(b"\n", 0, written) + 1)
            raise FolderError(_unwritable(path, error)) from error

    def release(self) -> None:
        """Give back the room that was kept for manifest and summary."""
        (self.path / _RESERVE).unlink(missing_ok=True)

    def read(self) -> list[RequestRecord]:
        return list(read_lines(self.path / REQUESTS, RequestRecord))


def _refuse_run(path: Path, *, overwrite: bool) -> None:
    if _holds_run(path) and not overwrite:
        msg = f"{path} already holds a run: choose another --out, or replace it with --overwrite"
        raise FolderError(msg)


def _holds_run(path: Path) -> bool:
    """An attempt that recorded no request (the server was not there) is no run."""
    requests = path / REQUESTS
    return (path / SUMMARY).exists() or (requests.exists() and requests.stat().st_size > 0)
