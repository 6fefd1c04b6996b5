"""The master's side of a run that several processes send: Locust carries the messages; this module divides the load and aligns the clocks."""

import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import msgspec
from gevent.event import AsyncResult, Event
from locust.runners import STATE_MISSING, MasterRunner

from pd_contracts.boot import boot_id
from pd_contracts.records import RequestRecord
from pd_loadgen.live.processes import messages
from pd_loadgen.live.processes.messages import ClockSample, Job, Report, Tally
from pd_loadgen.live.processes.senders import Write
from pd_loadgen.workload.plan import Plan

CLOCK_QUESTIONS: Final = 8
CLOCK_TIMEOUT_S: Final = 5.0
# A worker that is gone shows in Locust's heartbeats after some seconds; until then nothing is to be seen of it.
LOOK_EVERY_S: Final = 0.2


_decoder = msgspec.json.Decoder(RequestRecord)


class WorkersError(OSError):
    """The workers cannot do the run; the message is one sentence."""


class _WorkerState:
    """One worker in one run."""

    def __init__(self, offset: float, note: str) -> None:
        self.offset, self.note = offset, note
        self.ready = False
        self.tally = Tally()
        self.report: Report | None = None


class Workers:
    """The workers of a Locust master. Those connected when a run begins take part in it."""

    lead_s: Final = 1.0

    def __init__(self, runner: MasterRunner, observe: Callable[[RequestRecord], None] | None = None) -> None:
        """Listen to the workers. `observe`, if given, sees each record of the window as it comes."""
        self._runner, self._run_id, self._observe = runner, "", observe
        self._workers: dict[str, _WorkerState] = {}
        self._answer: AsyncResult[tuple[float, str]] = AsyncResult()
        self._write: Write = _discard
        self._problem, self._stopping = "", Event()
        for name, listener in (
            (messages.CLOCK, self._on_clock),
            (messages.READY, self._on_ready),
            (messages.RECORDS, self._on_records),
            (messages.REPORT, self._on_report),
            (messages.FAILED, self._on_failed),
        ):
            runner.register_message(name, listener)

    @property
    def size(self) -> int:
        """How many workers are connected."""
        return int(self._runner.worker_count)

    @property
    def tally(self) -> Tally:
        return messages.added(worker.tally for worker in self._workers.values())

    def prepare(self, job: Job, planned: Plan, write: Write) -> None:
        """Give each worker its part, and wait until all have sent their warm-ups.

        Raises:
            WorkersError: if one cannot do its part, or none is there.
        """
        self._run_id, self._problem, self._write = job.run_id, "", write
        self._workers = {client: self._meet(client) for client in self._connected()}
        if not self._workers:
            msg = "no worker is connected: start some with --worker"
            raise WorkersError(msg)
        for index, client in enumerate(self._workers):
            part = msgspec.structs.replace(job, index=index, count=len(self._workers))
            body = {"job": msgspec.msgpack.encode(part), "hash": planned.hash, "shift": self._workers[client].offset}
            self._runner.send_message(messages.JOB, body, client)
        self._wait(lambda: self._stopping.is_set() or all(worker.ready for worker in self._workers.values()))
        if self._problem and not self._stopping.is_set():
            self._tell(messages.STOP)
            raise WorkersError(self._problem)

    def offer(self, start: float) -> list[Report]:
        """Make all workers send from `start` on. Of a lost worker the records up to then remain, and its report is incomplete."""
        for client, worker in self._workers.items():
            self._runner.send_message(messages.START, {"run": self._run_id, "start": start + worker.offset}, client)
        if self._stopping.is_set():
            self._tell(messages.STOP)
        self._wait(lambda: all(worker.report for worker in self._workers.values()))
        if self._problem:
            self._tell(messages.STOP)
            self._problem = ""
            self._wait(lambda: all(one.report or self._lost(client) for client, one in self._workers.items()))
        return [
            msgspec.structs.replace(report, notes=[*report.notes, worker.note] if worker.note else report.notes)
            for worker in self._workers.values()
            for report in [worker.report or Report(complete=False, notes=[messages.LOST])]
        ]

    def stop(self) -> None:
        """End the run early; nothing is lost."""
        self._stopping.set()
        self._tell(messages.STOP)

    def close(self) -> None:
        """Be ready for another run: workers hand over their last records before they report."""
        self._stopping.clear()

    def _connected(self) -> list[str]:
        clients = self._runner.clients
        return sorted(client.id for client in [*clients.ready, *clients.spawning, *clients.running])

    def _lost(self, client: str) -> bool:
        node = self._runner.clients.get(client)
        return node is None or node.state == STATE_MISSING

    def _tell(self, message: str) -> None:
        for client in self._workers:
            if not self._lost(client):
                self._runner.send_message(message, {"run": self._run_id}, client)

    def _wait(self, over: Callable[[], bool]) -> None:
        """Wait; a worker that fails or is lost meanwhile ends the wait by setting `_problem`."""
        while not over() and not self._problem:
            gevent.sleep(LOOK_EVERY_S)
            if any(self._lost(client) and not worker.report for client, worker in self._workers.items()):
                self._problem = self._problem or messages.LOST

    def _meet(self, client: str) -> _WorkerState:
        """Measure the offset of a worker's clock from ours; on one machine it is the same clock."""
        samples: list[ClockSample] = []
        for _ in range(CLOCK_QUESTIONS):
            self._answer = AsyncResult()
            asked = time.monotonic()
            self._runner.send_message(messages.CLOCK, {}, client)
            try:
                read, boot = self._answer.get(timeout=CLOCK_TIMEOUT_S)
            except gevent.Timeout:
                msg = f"worker {client} does not answer: does it have the same version?"
                raise WorkersError(msg) from None
            if boot and boot == boot_id():
                return _WorkerState(0.0, "")
            samples.append(ClockSample(asked, read, time.monotonic()))
        offset, error = messages.offset(samples)
        return _WorkerState(
            offset, f"worker {client} has its own clock, aligned with the master's to within {error * 1e3:.2f} ms"
        )

    def _worker(self, msg: Any) -> _WorkerState | None:
        """The worker that sent a message; None if it does not belong to the present run."""
        return self._workers.get(msg.node_id) if msg.data["run"] == self._run_id else None

    def _on_clock(self, msg: Any, **_: Any) -> None:
        self._answer.set((msg.data["read"], msg.data["boot"]))

    def _on_ready(self, msg: Any, **_: Any) -> None:
        if (worker := self._worker(msg)) is not None:
            worker.ready = True

    def _on_records(self, msg: Any, **_: Any) -> None:
        if (worker := self._worker(msg)) is not None:
            worker.tally = msgspec.convert(msg.data["tally"], Tally)
            self._write([msg.data["lines"]])
            if self._observe is not None:
                for record in _decoder.decode_lines(msg.data["lines"]):
                    if not record.warmup:
                        self._observe(record)

    def _on_report(self, msg: Any, **_: Any) -> None:
        if (worker := self._worker(msg)) is not None:
            worker.report = msgspec.json.decode(msg.data["report"], type=Report)

    def _on_failed(self, msg: Any, **_: Any) -> None:
        if self._worker(msg) is not None:
            self._problem = f"worker {msg.node_id}: {msg.data['sentence']}"


def _discard(_lines: list[bytes]) -> None:
    """Discard records that come before the first run."""
