"""The results folder of a comparison: which points are done, their results, and what could not be measured."""

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.folders import FolderError, check_folder, unwritable
from pd_contracts.records import (
    MANIFEST,
    NOT_MEASURED,
    SUMMARY,
    Manifest,
    Missing,
    NotMeasured,
    RecordError,
    read_json,
    write_json,
)
from pd_control.compare.rates import Outcome

IDENTITY: Final = "comparison.json"
# The address changes from start to start, and the model is in comparison.json.
_PLACE: Final = ("--url", "--model", "--monitor", "--out", "--overwrite")

# What the proxy predicts with. A comparison may gain deployments that it routes by predictions; they must then agree in these.
OF_ROUTING: Final = ("TTFT_SLO_MS", "TPOT_SLO_MS", "STEP_PROFILE")
# What a run, its plots and the reserve of the load generator take at the least.
LEAST_FREE_BYTES: Final = 4 << 20


class Results:
    """`DIR/DEPLOYMENT/POINT` are run folders; `DIR/not-measured.json` lists what is missing and why."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self, identity: Mapping[str, str], *, restart: bool) -> None:
        """See whether the folder can take this comparison, before anything starts; nothing is changed.

        `identity` must equal that of the comparison to be continued; with `restart` it is not compared.

        Raises:
            FolderError: if it cannot be written, holds something that no comparison wrote, or holds another comparison.
        """
        check_folder(self.root)
        strange = [path.name for path in self.root.glob("*") if not _ours(path)] if self.root.is_dir() else []
        if strange:
            msg = f"{self.root} holds {strange[0]}, which was not written by a comparison: choose another --out"
            raise FolderError(msg)
        if not restart:
            self._refuse_other(identity)

    def prepare(self, identity: Mapping[str, str], *, restart: bool) -> None:
        """Make the folder; with `restart`, remove its contents first.

        Raises:
            FolderError: if that fails, or if `check` refuses it.
        """
        self.check(identity, restart=restart)
        try:
            if restart and self.root.is_dir():
                shutil.rmtree(self.root)
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / IDENTITY, {**self._known(), **identity})
        except OSError as error:
            raise unwritable(self.root, error) from error

    def _refuse_other(self, identity: Mapping[str, str]) -> None:
        known = self._known()
        if not known:
            return
        for name, value in identity.items():
            if name in OF_ROUTING and name not in known:
                continue
            if known.get(name, "") != value:
                was = known.get(name) or "not set"
                msg = f"{self.root} holds a comparison with {name}={was}, but it is {value or 'not set'} now: choose another --out, or --restart"
                raise FolderError(msg)

    def _known(self) -> dict[str, str]:
        path = self.root / IDENTITY
        return read_json(path, dict[str, str]) if path.exists() else {}

    def refuse_full_disk(self) -> None:
        """Do nothing while there is room for another run.

        Raises:
            FolderError: if not.
        """
        if shutil.disk_usage(self.root).free < LEAST_FREE_BYTES:
            full = unwritable(self.root, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            msg = f"{full}. What was measured is kept: the same command continues from here"
            raise FolderError(msg)

    def run(self, deployment: str, point: str) -> Path:
        return self.root / deployment / point

    def done(self, deployment: str, point: str, words: Sequence[str]) -> bool:
        """Whether the point's run is there, complete and with a client that kept up.

        Raises:
            FolderError: if there is a complete run with other options, which must neither be overwritten nor mistaken for this one.
        """
        folder = self.run(deployment, point)
        if not (folder / MANIFEST).exists():
            return False
        try:
            manifest = read_json(folder / MANIFEST, Manifest)
        except RecordError as error:
            raise FolderError(str(error)) from error
        if not manifest.complete or (manifest.client is not None and not manifest.client.valid):
            return False
        if _identity(manifest.command) != _identity(["pd-loadgen", "run", *words]):
            msg = f"{folder} holds a run with other options: choose another --out, or --restart to measure all of it again"
            raise FolderError(msg)
        return True

    def outcome(self, deployment: str, point: str) -> Outcome | None:
        """The result of a point; None if it left no summary."""
        folder = self.run(deployment, point)
        try:
            manifest = read_json(folder / MANIFEST, Manifest)
        except RecordError:
            return None
        numbers = self.summary(deployment, point)
        if not manifest.complete or not numbers:
            return None
        attained = (numbers["pdstack"].get("attainment") or {}).get("all")
        share = (
            attained
            if attained is not None
            else 1.0 - numbers["failed"] / max(1, numbers["failed"] + numbers["completed"])
        )
        return Outcome(attainment=share, client_in_time=manifest.client is None or manifest.client.valid)

    def summary(self, deployment: str, point: str) -> dict[str, Any]:
        """The run's summary; empty if it has none."""
        try:
            found = msgspec.json.decode((self.run(deployment, point) / SUMMARY).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return {}
        return found if isinstance(found, dict) else {}

    def explain(self, missing: Sequence[NotMeasured]) -> None:
        """Write the list of missing parts for the report; without any, remove the file.

        Raises:
            FolderError: if it cannot be written, on a disk that is full meanwhile.
        """
        path = self.root / NOT_MEASURED
        try:
            if missing:
                write_json(path, Missing(parts=list(missing)))
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.root, error) from error

    def remark(self, deployment: str, point: str) -> str:
        """Why a run that is not complete ended, as it says itself; empty if it does not."""
        try:
            manifest = read_json(self.run(deployment, point) / MANIFEST, Manifest)
        except RecordError:
            return ""
        return "" if manifest.complete or not manifest.notes else manifest.notes[-1]


def _ours(path: Path) -> bool:
    if path.is_dir():
        return (
            path.name in {"plots", "logs", "data"}
            or not any(file.is_file() for file in path.rglob("[!.]*"))  # left by a run that could not begin
            or any(path.glob(f"*/{MANIFEST}"))
            or any(path.glob("*/*.jsonl"))
        )
    return path.name in {IDENTITY, NOT_MEASURED, "report.html", "report.md"} or path.name.startswith(".")


def _identity(command: Sequence[str]) -> list[str]:
    return sorted(word for word in command if word.partition("=")[0] not in _PLACE)
