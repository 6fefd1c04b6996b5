"""The guard: a process that restores clocks when their holder dies, even by `kill -9`, or sends no heartbeat for the time of the lease.

It is started before the first change, in a session of its own so that a signal to the holder's terminal does not end it, and
listens on a pipe: a byte is a heartbeat, and the end of the pipe is the end of the holder. A holder that has restored everything itself
leaves no journal, and then there is nothing to do.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final

from pd_monitor.clocks.control import Control
from pd_monitor.clocks.journal import Journal
from pd_monitor.clocks.plan import ClockError

ATTEMPTS: Final = 5
_READY: Final = b"ready\n"
_START_S: Final = 20.0


def restore(control: Control, journal: Journal) -> list[str]:
    """Undo the changes in the journal, and remove them from it; returns the boards' UUIDs.

    Raises:
        ClockError: if a board refused. The others are restored nevertheless, and the journal keeps that one.
    """
    entry = journal.read()
    if entry is None:
        return []
    done, failed, problem = [], [], None
    for change in entry.changes:
        try:
            control.restore(change)
            done.append(change.uuid)
        except ClockError as error:
            failed.append(change)
            problem = error
    journal.keep(failed)
    if problem is not None:
        raise problem
    return done


class Guard:
    """The holder's end; use it with `with`."""

    def __init__(self, folder: Path, lease_s: float) -> None:
        self._command = [sys.executable, "-m", "pd_monitor.clocks.guard", str(folder), str(lease_s)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Guard":
        """Start it, and return when it listens.

        Raises:
            ClockError: if it does not; then nothing may be changed.
        """
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        ready, _, _ = select.select([_out(self._process)], [], [], _START_S)
        if not ready or _out(self._process).readline() != _READY:
            self._process.kill()
            self.__exit__()
            msg = "the guard that restores clocks does not start; nothing was changed"
            raise ClockError(msg)
        return self

    def beat(self) -> None:
        """Say that the holder lives.

        Raises:
            ClockError: if the guard has ended: it took the holder for dead, and restored everything.
        """
        try:
            _in(self._process).write(b".")
            _in(self._process).flush()
        except BrokenPipeError as error:
            msg = "the lease was lost: this process was stopped for too long, and the guard restored the clocks"
            raise ClockError(msg, 5) from error

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended before
                _in(process).close()
            process.wait()
            _out(process).close()


def _in(process: "subprocess.Popen[bytes] | None") -> IO[bytes]:
    assert process is not None and process.stdin is not None  # noqa: S101, PT018 - `with` started it with a pipe
    return process.stdin


def _out(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    return process.stdout


def _wait_for_the_end(lease_s: float) -> None:
    while select.select([0], [], [], lease_s)[0]:
        if not os.read(0, 4096):
            return


def main() -> int:
    """Watch, then restore; status 1 if something could not be restored, which the next start then tries again."""
    folder, lease_s = Path(sys.argv[1]), float(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    _wait_for_the_end(lease_s)
    journal = Journal(folder)
    for _ in range(ATTEMPTS):
        try:
            if journal.read() is None:
                return 0
            with Control() as control:
                restore(control, journal)
        except ClockError:
            time.sleep(1)  # the board or the driver may come back
    return 0 if journal.read() is None else 1


if __name__ == "__main__":
    sys.exit(main())
