"""Whether results can be written where somebody wants them: asked before anything is started, answered with the remedy."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

OUT: Final = "--out"
_DENIED: Final = (errno.EACCES, errno.EPERM)
# The kernel's own folders (/proc, /sys) refuse new files with one of these, though they are there.
_NO_FILES: Final = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)


class FolderError(OSError):
    """A folder or file for results cannot be used; the message is one sentence with the remedy."""


def check_folder(path: Path, option: str = OUT) -> None:
    """See whether files can be written below a folder, which may not be there yet; nothing is left behind.

    Raises:
        FolderError: if not. `option` is what the user has to change.
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
        msg = f"{existing} is a file: choose another {option}, a folder"
        raise FolderError(msg)


def check_file(path: Path, option: str = OUT) -> None:
    """See whether a file can be written or replaced; nothing is left behind.

    Raises:
        FolderError: if not.
    """
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:  # it is below a folder that may not even be looked into
        raise unwritable(path, error, option) from error
    if folder:
        msg = f"{path} is a folder: choose another {option}, a file"
        raise FolderError(msg)
    if not there:
        check_folder(path.parent, option)
    elif not os.access(path, os.W_OK):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), option)


def unwritable(path: Path, error: OSError, option: str = OUT) -> FolderError:
    """Why something cannot be written, and what to do about it."""
    if error.errno in _NO_FILES and path.is_dir():
        return FolderError(f"{path} takes no files: choose another {option}")
    return FolderError(f"{path} cannot be written: {error.strerror or error}; {_remedy(path, error, option)}")


def _remedy(path: Path, error: OSError, option: str) -> str:
    if error.errno == errno.ENOSPC:
        return f"free some space there, or choose another {option}"
    if error.errno == errno.EROFS:
        return f"it is on a read-only file system: choose another {option}, or mount it writable"
    if error.errno not in _DENIED:
        return f"choose another {option}"
    try:
        owner = path.stat()
    except OSError:
        return f"choose another {option}"  # it is below a folder that may not even be looked into
    user, group = os.getuid(), os.getgid()
    own = f"sudo chown -R {user}:{group} {path} (of a container: the folder that is mounted there)"
    # nobody should be advised to run as root
    other = f", or let the container run as its owner: PD_UID={owner.st_uid} and PD_GID={owner.st_gid} in .env"
    return f"it belongs to user {owner.st_uid} and this runs as user {user}: {own}{other if owner.st_uid else ''}"
