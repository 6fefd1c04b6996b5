"""The record of changes, on disk before they are made. Only the holder of the folder's lock may make any; the kernel frees the lock when it dies."""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import msgspec

from pd_contracts.records import Clock
from pd_monitor.clocks.plan import ClockError, Step

FORMAT: Final = 1


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One board: whether its clock was locked, and the power limit to restore (None: not changed)."""

    uuid: str
    locked: bool
    previous_cap_mw: int | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The whole journal."""

    pid: int
    written: Clock
    changes: list[Change]
    format: int = FORMAT


class Journal:
    """The journal of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "clocks.json"
        self._lock: IO[bytes] | None = None

    def hold(self) -> None:
        """Become the only process that changes clocks on this host, until it ends.

        Raises:
            ClockError: if another does, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "clocks.lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another `pd-monitor clocks` holds clocks by {self.folder}; end it first"
            raise ClockError(msg, 3) from error
        except OSError as error:
            msg = f"{self.folder}: {error.strerror}; CLOCKS_STATE_DIR names another folder"
            raise ClockError(msg) from error

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write(self, steps: Iterable[Step]) -> None:
        """Record what is about to change; it is on the disk itself when this returns."""
        self._put([_change(step) for step in steps])

    def keep(self, changes: Iterable[Change]) -> None:
        """Keep only these changes; without any, delete the journal."""
        remaining = list(changes)
        if remaining:
            self._put(remaining)
        else:
            self.path.unlink(missing_ok=True)
            self._sync_folder()

    def read(self) -> Entry | None:
        """Changes that were made and not restored; None if there are none.

        Raises:
            ClockError: if the journal cannot be read.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            msg = f"{self.path}: {error}; look at the clocks by hand (nvidia-smi -rgc, -pl) and delete it"
            raise ClockError(msg) from error

    def _put(self, changes: list[Change]) -> None:
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(Entry(pid=os.getpid(), written=Clock.now(), changes=changes)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _change(step: Step) -> Change:
    return Change(
        uuid=step.board.uuid,
        locked=step.wish.lock_mhz is not None,
        previous_cap_mw=step.board.cap_mw if step.wish.cap_w is not None else None,
    )
