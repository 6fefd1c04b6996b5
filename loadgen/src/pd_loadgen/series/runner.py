"""Runs one after the other, each in a process of its own: gevent patches a process permanently, and each run should begin in a clean one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from pd_loadgen.client.access import keep_secret
from pd_loadgen.results import run_folder
from pd_loadgen.results.manifests import EXIT_BAD, EXIT_COMPLETE, EXIT_STOPPED
from pd_loadgen.series import sweep
from pd_loadgen.series.sweep import Point


class Series:
    """Does points; a signal is handed to the run under way, which keeps its records, and ends the series."""

    def __init__(self, folder: Path, say: TextIO) -> None:
        """Runs go below `folder`; `say`, which is a real file, gets a line per point and what the runs print.

        Raises:
            FolderError: if nothing can be written there.
        """
        run_folder.check(folder, overwrite=True)
        self.folder = folder
        self.stopped = False
        self._say = say
        self._child: subprocess.Popen[bytes] | None = None

    def all(self, points: Sequence[Point]) -> int:
        """Do what is not done yet; returns the worst exit status. Late and failed runs do not end the series.

        Raises:
            SweepError: if a point's folder holds another run.
        """
        worst = EXIT_COMPLETE
        for number, point in enumerate(points, 1):
            status = self.one(point, f"{number}/{len(points)}")
            worst = max(worst, status)
            if status in (EXIT_BAD, EXIT_STOPPED) or self.stopped:
                break
        return EXIT_STOPPED if self.stopped else worst

    def one(self, point: Point, place: str) -> int:
        """Do one point unless its folder has it; returns its exit status.

        Raises:
            SweepError: if its folder holds another run.
        """
        words = sweep.arguments(point, self.folder)
        if sweep.done(self.folder / point.name, words):
            self._say.write(f"pd-loadgen: {place} {point.name}: done before\n")
            return EXIT_COMPLETE
        self._say.write(f"pd-loadgen: {place} {point.name}\n")
        self._say.flush()
        with self._signals():
            # a session of its own: a terminal's Ctrl-C reaches it through us, and once
            command = [sys.executable, "-m", "pd_loadgen", "run", *words, "--overwrite"]
            environment = dict(os.environ)
            keep_secret(point.secret, environment)
            self._child = subprocess.Popen(command, stdout=self._say, start_new_session=True, env=environment)
            status = self._child.wait()
        if status:
            self._say.write(f"pd-loadgen: {place} {point.name}: exit status {status}\n")
        return EXIT_STOPPED if status < 0 else status

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
