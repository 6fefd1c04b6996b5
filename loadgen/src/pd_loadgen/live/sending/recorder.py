"""Turns finished exchanges into records while other streams are running: in small slices, and only when no socket waits."""

import time
from collections.abc import Callable
from typing import Final

import gevent
from gevent.queue import Queue

from pd_contracts.records import RequestRecord, encode_line
from pd_loadgen.client.backends import Backend
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.client.stream import Reading, record, shifted, streamed
from pd_loadgen.live.sending.yielding import when_idle
from pd_loadgen.workload.plan import Planned

# About 0.1 ms of parsing.
SLICE_READS: Final = 32
WRITE_EVERY_S: Final = 1.0


class Recorder:
    """One greenlet that parses, and one that writes each second; `put` never waits.

    Attributes:
        chunks, merged: token chunks of the window's requests so far, and those that shared a read with the one before.
    """

    def __init__(
        self,
        backend: Backend,
        run_id: str,
        write: Callable[[list[bytes]], None],
        observe: Callable[[RequestRecord], None],
        shift: float = 0.0,
    ) -> None:
        """Start both. `write` takes encoded records, `observe` sees each record of the window once, for live figures.

        Records are on a clock that is `shift` seconds behind this process's: that of the master, where there is one.
        """
        self._backend, self._run_id, self._write_lines, self._observe = backend, run_id, write, observe
        self._shift = shift
        self.chunks = self.merged = 0
        self._queue: Queue[tuple[Planned, Exchange] | None] = Queue()
        self._unwritten: list[bytes] = []
        self._parser = gevent.spawn(self._parse)
        self._writer = gevent.spawn(self._write)

    def put(self, planned: Planned, exchange: Exchange) -> None:
        """Hand over a request that has ended, however it did."""
        self._queue.put_nowait((planned, exchange))

    def drain(self) -> None:
        """Parse everything that was put; nothing may be put any more."""
        self._queue.put_nowait(None)
        self._parser.get()

    def close(self) -> None:
        """Parse and write everything that was put."""
        self.drain()
        self._writer.kill()
        self._flush()

    def _parse(self) -> None:
        while (item := self._queue.get()) is not None:
            when_idle()
            planned, exchange = item
            made = self._record(planned, exchange)
            self._unwritten.append(encode_line(shifted(made, -self._shift) if self._shift else made))
            if not planned.warmup:
                self._count(made)
                self._observe(made)

    def _count(self, made: RequestRecord) -> None:
        self.chunks += len(made.chunks)
        self.merged += sum(one[0] == other[0] for one, other in zip(made.chunks, made.chunks[1:], strict=False))

    def answer(self, exchange: Exchange) -> str | None:
        """The text of an answer that was complete; None if there is none."""
        reading = self._read(exchange)
        reading.finish()
        return reading.text if streamed(exchange) and reading.failure is None else None

    def _record(self, planned: Planned, exchange: Exchange) -> RequestRecord:
        reading = self._read(exchange, planned.output_tokens)
        kind = "w" if planned.warmup else "r"
        return record(
            exchange,
            reading,
            index=planned.index,
            id_=f"{self._run_id}/{kind}{planned.index}",
            output_tokens=planned.output_tokens,
            warmup=planned.warmup,
        )

    def _read(self, exchange: Exchange, asked: int = 0) -> Reading:
        reading = Reading(self._backend, asked)
        if streamed(exchange):
            for number, (t, data) in enumerate(exchange.reads, 1):
                reading.feed(t, data)
                if number % SLICE_READS == 0:
                    when_idle()
        return reading

    def _write(self) -> None:
        begin = time.monotonic()
        while True:
            gevent.sleep(WRITE_EVERY_S - (time.monotonic() - begin) % WRITE_EVERY_S)
            when_idle()
            self._flush()

    def _flush(self) -> None:
        lines, self._unwritten = self._unwritten, []
        self._write_lines(lines)
