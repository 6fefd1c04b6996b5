"""From stamped bytes to a request record; pure, and done after the request has ended, so that parsing delays no stamp.

Feed a `Reading` in slices where other streams are running: the reads are independent steps.
"""

import hashlib
import re
from typing import Final

import msgspec

from pd_contracts import timing
from pd_contracts.records import Failure, RequestRecord
from pd_contracts.sse import Comment, Decoder, Event
from pd_contracts.timing import Stages
from pd_loadgen.client.backends import Backend, Delta
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.client.token_chunks import Mark, settle

MAX_MESSAGE: Final = 300


class Reading:
    """Reads the body of one streamed answer, of which `asked` tokens were wanted (0: not known)."""

    def __init__(self, backend: Backend, asked: int = 0) -> None:
        self.stages: Stages | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.failure: Failure | None = None
        self.done = False
        self._reader, self._backend, self._asked = backend.reader(), backend, asked
        self._decoder = Decoder()
        self._marks: list[Mark] = []
        self._closed = False
        self._ids: list[int] = []

    def feed(self, t: float, data: bytes) -> None:
        """Take one read; all its events share the stamp. After the end mark only usage counts, and after an error nothing."""
        for item in self._decoder.feed(data):
            if isinstance(item, Comment):
                if item.text.startswith(timing.PREFIX):
                    self.stages = timing.decode(item.text) or self.stages
            elif not self.failure:
                self._event(t, item)

    def finish(self) -> None:
        """Take the end of the body: find out whether the end mark is missing, or an answer that was cut before it."""
        if self.failure is not None:
            return
        self.done = self.done or Event(self._decoder.pending).done
        if not self.done and (self._backend.end_mark or self._decoder.incomplete):
            where = "inside an event" if self._decoder.incomplete else "without its end mark"
            self.failure = Failure(kind="truncated", message=f"the stream ended {where}")
        elif not self.chunks:
            self.failure = Failure(kind="protocol", message="the stream ended without a token")
        elif self._cut:
            told = "the stream ended with neither a finish reason nor the whole answer"
            self.failure = Failure(kind="truncated", message=told)

    @property
    def chunks(self) -> list[tuple[float, int]]:
        """(time, tokens) of each chunk that was a token, as far as is known by now."""
        return settle(self._marks, self.output_tokens, stopped=self.finish_reason == "stop")

    @property
    def text(self) -> str:
        return "".join(mark.text for mark in self._marks)

    @property
    def output_hash(self) -> str | None:
        """SHA-256 over the token ids or, without them, the text; None without output."""
        if self._ids:
            return hashlib.sha256(",".join(map(str, self._ids)).encode()).hexdigest()
        return hashlib.sha256(self.text.encode()).hexdigest() if self.chunks else None

    @property
    def _cut(self) -> bool:
        if self._closed or not self._backend.closes:
            return False
        found = sum(tokens for _, tokens in self.chunks) if self.output_tokens is None else self.output_tokens
        return found < self._asked

    def _event(self, t: float, event: Event) -> None:
        if event.done:
            self.done = True
            return
        try:
            delta = self._reader.read(event.data)
        except msgspec.MsgspecError as error:
            delta = Delta(error=event.data) if event.name == "error" else Delta()
            if delta.error is None and not self.done:
                self.failure = Failure(
                    kind="protocol", message=f"an event is not a chunk ({error}): {event.data[:80]!r}"
                )
        if self.failure is not None:
            return
        if event.name == "error" and delta.error is None:
            delta = Delta(error=event.data)
        if self.done:
            self._count(delta)
        elif delta.error is not None:
            self.failure = Failure(kind="stream_error", message=delta.error[:MAX_MESSAGE])
        else:
            self._take(t, delta)

    def _take(self, t: float, delta: Delta) -> None:
        if delta.tokens or delta.blank or delta.text:
            self._marks.append(Mark(t, delta.tokens, delta.exact, delta.text, ends=bool(delta.finish_reason)))
        self._ids.extend(delta.token_ids)
        self._count(delta)
        self._closed = self._closed or delta.closing
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.done = self.done or delta.last

    def _count(self, delta: Delta) -> None:
        if delta.prompt_tokens is not None:
            self.prompt_tokens = delta.prompt_tokens
        if delta.output_tokens is not None:
            self.output_tokens = delta.output_tokens


def record(
    exchange: Exchange, reading: Reading, *, index: int, id_: str, output_tokens: int, warmup: bool
) -> RequestRecord:
    """The record of a request whose reads have been fed to `reading`."""
    failure = _failure(exchange, reading)
    return RequestRecord(
        index=index,
        id=id_,
        scheduled=exchange.scheduled,
        sent=exchange.sent,
        headers=exchange.headers_at,
        first_byte=exchange.reads[0][0] if exchange.reads else None,
        chunks=reading.chunks,
        end=exchange.end,
        prompt_tokens=reading.prompt_tokens,
        output_tokens=reading.output_tokens,
        requested_output_tokens=output_tokens,
        finish_reason=reading.finish_reason,
        status=exchange.head.status if exchange.head else None,
        error=failure,
        stages=reading.stages,
        output_hash=reading.output_hash,
        warmup=warmup,
    )


def shifted(made: RequestRecord, seconds: float) -> RequestRecord:
    """The same record on a clock that is ahead by so many seconds."""

    def moved(moment: float | None) -> float | None:
        return None if moment is None else moment + seconds

    return msgspec.structs.replace(
        made,
        scheduled=made.scheduled + seconds,
        sent=moved(made.sent),
        headers=moved(made.headers),
        first_byte=moved(made.first_byte),
        chunks=[(at + seconds, tokens) for at, tokens in made.chunks],
        end=moved(made.end),
    )


def streamed(exchange: Exchange) -> bool:
    """True if the body is an event stream and not an error or something else; some servers call theirs text/plain."""
    head = exchange.head
    if head is None or head.status != 200:
        return False
    kind = head.headers.get("content-type", "").lower()
    begin = exchange.reads[0][1] if exchange.reads else b""
    return kind.startswith("text/event-stream") or _EVENTS.match(begin) is not None


_EVENTS: Final = re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry)?:")


def _failure(exchange: Exchange, reading: Reading) -> Failure | None:
    if exchange.head is not None and exchange.head.status != 200:
        return Failure(kind="status", message=f"{exchange.head.status}: {_body_message(exchange)}")
    if reading.failure is not None:
        return reading.failure  # the server's own error says more than how the connection then ended
    if exchange.failure is not None and not (exchange.failure.kind == "truncated" and reading.done):
        # after the end mark a server may hang up without ending the body: nothing is missing
        return exchange.failure
    if not streamed(exchange):
        return Failure(kind="protocol", message=f"the answer is not an event stream: {_body_message(exchange)}")
    reading.finish()
    return reading.failure


class _Inner(msgspec.Struct):
    message: str


class _ErrorBody(msgspec.Struct):
    error: _Inner | str | None = None
    message: str | None = None


def _body_message(exchange: Exchange) -> str:
    body = b"".join(data for _, data in exchange.reads)
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except msgspec.MsgspecError:
        said = _ErrorBody()
    error = said.error or said.message or body[:MAX_MESSAGE].decode("utf-8", "replace").strip() or "no body"
    return (error if isinstance(error, str) else error.message)[:MAX_MESSAGE]
