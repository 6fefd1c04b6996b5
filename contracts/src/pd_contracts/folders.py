"""Checks that results can be written, before anything is started; errors have the remedy."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from pd_contracts.sentences import SentenceError

OUT: Final = "--out"
_DENIED: Final = (errno.EACCES, errno.EPERM)
# The kernel's own folders (/proc, /sys) refuse new files with one of these, though they are there.
_NO_FILES: Final = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)


class FolderError(SentenceError, OSError):
    """A folder or file for results cannot be used; the message is one sentence with the remedy."""


def check_folder(path: Path, option: str = OUT) -> None:
    """Check that files can be written below a folder, which may not exist yet; leaves nothing behind.

    Raises:
        FolderError: if not. `option` is the option that the user must change.
    """
    existing = path.absolute()
    try:
        existing = next(each for each in (existing, *existing.parents) if each.exists())
        folder = existing.is_dir()
        if folder:
            with tempfile.TemporaryFile(dir=existing, prefix=".pdstack-") as file:
                file.write(bytes(4096))
    except OSError as error:
        raise unwritable(existing, error, option) from error
    if not folder:
        raise FolderError("{path} is a file: choose another {option}, a folder", path=existing, option=option)


def check_file(path: Path, option: str = OUT) -> None:
    """Check that a file can be written or replaced; leaves nothing behind.

    Raises:
        FolderError: if not.
    """
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:  # it is below a folder that may not even be looked into
        raise unwritable(path, error, option) from error
    if folder:
        raise FolderError("{path} is a folder: choose another {option}, a file", path=path, option=option)
    if not there:
        check_folder(path.parent, option)
    elif not os.access(path, os.W_OK):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), option)


def unwritable(path: Path, error: OSError, option: str = OUT) -> FolderError:
    """Why something cannot be written, and what to do about it."""
    if error.errno in _NO_FILES and path.is_dir():
        return FolderError("{path} takes no files: choose another {option}", path=path, option=option)
    why = error.strerror or error
    if error.errno == errno.ENOSPC:
        return FolderError(
            "{path} cannot be written: {why}; free some space there, or choose another {option}",
            path=path,
            why=why,
            option=option,
        )
    if error.errno == errno.EROFS:
        return FolderError(
            "{path} cannot be written: {why}; it is on a read-only file system: choose another {option}, or mount it writable",
            path=path,
            why=why,
            option=option,
        )
    return _denied(path, why, option) if error.errno in _DENIED else _other(path, why, option)


def _other(path: Path, why: object, option: str) -> FolderError:
    return FolderError("{path} cannot be written: {why}; choose another {option}", path=path, why=why, option=option)


def _denied(path: Path, why: object, option: str) -> FolderError:
    try:
        owner = path.stat()
    except OSError:  # it is below a folder that may not even be looked into
        return _other(path, why, option)
    user = os.getuid()
    holes: dict[str, object] = {"path": path, "why": why, "owner": owner.st_uid, "user": user}
    holes["own"] = f"sudo chown -R {user}:{os.getgid()} {path}"
    if not owner.st_uid:  # nobody should be advised to run as root
        return FolderError(
            "{path} cannot be written: {why}; it belongs to user {owner} and this runs as user {user}: {own} (of a container: the folder that is mounted there)",
            **holes,
        )
    return FolderError(
        "{path} cannot be written: {why}; it belongs to user {owner} and this runs as user {user}: {own} (of a container: the folder that is mounted there), or let the container run as its owner: {ids} in .env",
        **holes,
        ids=f"PD_UID={owner.st_uid} PD_GID={owner.st_gid}",
    )
