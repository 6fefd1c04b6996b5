"""Recordings: between `POST /recordings` and `DELETE /recordings/{id}` every due tick goes to a file of its own.

The file is anonymous (it has no name on disk and is deleted with the process), so memory stays bounded however long a recording
runs, and nothing is left behind. Its content is the future gpu.jsonl: a `GpuHeader` line, then `GpuSample` lines.
"""

import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Annotated

import msgspec

from pd_contracts.names import Role
from pd_contracts.records import Clock, EngineTokens, GpuHeader, GpuInfo, GpuSample, encode_line
from pd_monitor.errors import ApiError
from pd_monitor.reading import Tick
from pd_monitor.roles import unknown_gpus
from pd_monitor.schedule import Schedule
from pd_monitor.settings import GpuIndex, Interval

# Recordings kept at once, running or waiting to be fetched; an open file each.
MOST_RECORDINGS = 16
READ_BYTES = 256 << 10

_encoder = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class StartRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /recordings`. `roles` (GPU index to role) overrides the monitor's own mapping."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    interval_s: Interval | None = None
    roles: dict[GpuIndex, Role] = {}  # msgspec copies an empty default


class Started(msgspec.Struct, frozen=True):
    """Answer to `POST /recordings`."""

    id: str
    interval_s: float


class Status(msgspec.Struct, frozen=True):
    """One recording in `GET /recordings`; `ended` says why it takes no more samples, empty while it does."""

    id: str
    name: str
    interval_s: float
    started: float
    samples: int
    ended: str


class Recording:
    """One recording; takes ticks until it is ended, and then waits to be fetched."""

    def __init__(self, request: StartRequest, header: GpuHeader) -> None:
        self.id = uuid.uuid4().hex
        self.name = request.name
        self.interval_s = header.interval_s
        self.started = header.clock
        self.samples = 0
        self.ended = ""
        self.fetching = False
        self.file: IO[bytes] = tempfile.TemporaryFile(prefix="pd-monitor-", buffering=0)  # noqa: SIM115 - closed by `Recordings.drop`
        self._roles = request.roles
        self._due: Schedule | None = None
        self._last_wanted = False
        self._engines: tuple[EngineTokens, ...] = ()
        self.file.write(encode_line(header))

    @property
    def active(self) -> bool:
        """True while it takes samples."""
        return not self.ended

    @property
    def status(self) -> Status:
        return Status(self.id, self.name, self.interval_s, self.started.wall, self.samples, self.ended)

    def want_last(self) -> None:
        """Take the next tick even if it is not due, so that the samples reach past the end of what is measured."""
        self._last_wanted = True

    def tell(self, engines: tuple[EngineTokens, ...]) -> None:
        """Put the engines' counters into the next sample; their times are their own, so that it may be a later one."""
        self._engines += engines

    def take(self, tick: Tick) -> None:
        """Write the tick's samples if one is due.

        The sampler may run faster than this recording asked for, and its ticks have jitter: one that comes up to half an
        interval early is the one that was meant.
        """
        early = tick.begun + self.interval_s / 2
        if self._due is None:
            self._due = Schedule(tick.begun, self.interval_s)
        if early < self._due.deadline and not self._last_wanted:
            return
        self._due, _ = self._due.after(early)
        samples = list(map(self._as_recorded, tick.reading.samples) if self._roles else tick.reading.samples)
        if self._engines and samples:
            samples[0] = msgspec.structs.replace(samples[0], engines=self._engines)
            self._engines = ()
        lines = _encoder.encode_lines(samples)
        try:
            written = self.file.write(lines)
        except OSError as error:
            self.end(f"cannot write: {error.strerror}")
            return
        if written != len(lines):
            self.end("cannot write: the disk is full")
        self.samples += len(tick.reading.samples)

    def lines(self) -> Iterator[bytes]:
        """Its whole lines so far, read beside the writer."""
        offset, rest = 0, b""
        while piece := os.pread(self.file.fileno(), READ_BYTES, offset):
            offset += len(piece)
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole

    def end(self, reason: str) -> None:
        if self.active:
            self.ended = reason
            _log.info("recording ended", extra={"recording": self.name, "reason": reason, "samples": self.samples})

    def _as_recorded(self, sample: GpuSample) -> GpuSample:
        role = self._roles.get(sample.index, sample.role)
        return sample if role is sample.role else msgspec.structs.replace(sample, role=role)


class Recordings:
    """All recordings of this process. `changed` is called when the fastest interval may have become another."""

    def __init__(self, *, default_interval_s: float, longest_s: float, changed: Callable[[], None]) -> None:
        self._default_interval_s = default_interval_s
        self._longest_s = longest_s
        self._changed = changed
        self._all: dict[str, Recording] = {}

    def fastest(self, idle_s: float) -> float:
        """The interval that serves every active recording; never slower than when idle."""
        return min([idle_s, *(recording.interval_s for recording in self._all.values() if recording.active)])

    @property
    def active(self) -> int:
        return sum(recording.active for recording in self._all.values())

    def statuses(self) -> list[Status]:
        """For the list, oldest first."""
        return [recording.status for recording in self._all.values()]

    def start(self, request: StartRequest, gpus: Sequence[GpuInfo], backend: str, *, simulated: bool) -> Recording:
        """Begin a recording of all GPUs.

        Raises:
            ApiError: 400 for a role of a GPU that does not exist; 409 if there is nothing to record, or too much.
        """
        known = [info.index for info in gpus]
        if not known:
            raise ApiError(409, "there is no GPU to record; GET /readyz gives the reason")
        if unknown := unknown_gpus(request.roles, known):
            raise ApiError(400, f"roles: there is no GPU {unknown[0]}; the GPUs are {', '.join(map(str, known))}")
        self._make_room()
        header = GpuHeader(
            clock=Clock.now(),
            backend=backend,
            simulated=simulated,
            interval_s=request.interval_s or self._default_interval_s,
            gpus=[msgspec.structs.replace(info, role=request.roles.get(info.index, info.role)) for info in gpus],
        )
        recording = Recording(request, header)
        self._all[recording.id] = recording
        _log.info("recording started", extra={"recording": recording.name, "interval_s": recording.interval_s})
        self._changed()
        return recording

    def find(self, id_: str) -> Recording:
        """The recording of this id.

        Raises:
            ApiError: 404 if it is unknown; 409 while another client fetches it.
        """
        recording = self._all.get(id_)
        if recording is None:
            raise ApiError(404, f"there is no recording {id_!r}; it may have been fetched before")
        if recording.fetching:
            raise ApiError(409, f"recording {id_!r} is being fetched")
        return recording

    def end(self, recording: Recording) -> None:
        """Take no more samples for it; its file stays until it is dropped."""
        recording.end("fetched")
        self._changed()

    def drop(self, recording: Recording) -> None:
        """Forget it and free its file."""
        recording.end("dropped")
        recording.file.close()
        self._all.pop(recording.id, None)

    def close(self) -> None:
        for recording in list(self._all.values()):
            self.drop(recording)

    def tell(self, engines: tuple[EngineTokens, ...]) -> None:
        """Give the engines' counters to every active recording."""
        for recording in self._all.values():
            if recording.active:
                recording.tell(engines)

    def take(self, tick: Tick) -> None:
        """Give a tick to every active recording; end those that ran too long or could not write."""
        before = self.active
        for recording in self._all.values():
            if recording.active:
                recording.take(tick)
            if recording.active and time.monotonic() - recording.started.monotonic > self._longest_s:
                recording.end(f"it was not ended within MAX_RECORDING_S={self._longest_s:g}")
        if self.active != before:
            self._changed()

    def _make_room(self) -> None:
        """Drop forgotten recordings, oldest first; never active ones."""
        if len(self._all) < MOST_RECORDINGS:
            return
        idle = [recording for recording in self._all.values() if not recording.active and not recording.fetching]
        if not idle:
            raise ApiError(409, f"{MOST_RECORDINGS} recordings are running; end one first")
        self.drop(idle[0])
