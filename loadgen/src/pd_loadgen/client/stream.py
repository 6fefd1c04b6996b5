"""From stamped bytes to a request record; pure, and done after the request has ended, so that parsing delays no stamp.

Feed a `Reading` in slices where other streams are running: the reads are independent steps.
"""

import hashlib
from typing import Final

import msgspec

from pd_contracts import timing
from pd_contracts.records import Failure, RequestRecord
from pd_contracts.sse import Comment, Decoder, Event
from pd_contracts.timing import Stages
from pd_loadgen.client.backends import Backend, Delta
from pd_loadgen.client.exchange import Exchange

MAX_MESSAGE: Final = 300


class Reading:
    """Reads the body of one streamed answer."""

    def __init__(self, backend: Backend) -> None:
        """Start at the beginning of a body."""
        self.chunks: list[tuple[float, int]] = []
        self.stages: Stages | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.failure: Failure | None = None
        self.done = False
        self._reader, self._end_mark = backend.reader(), backend.end_mark
        self._decoder = Decoder()
        self._blank_at: float | None = None
        self._text: list[str] = []
        self._ids: list[int] = []

    def feed(self, t: float, data: bytes) -> None:
        """Take one read; all its events share the stamp. Nothing counts after the end mark or an error."""
        for item in self._decoder.feed(data):
            if isinstance(item, Comment):
                if item.text.startswith(timing.PREFIX):
                    self.stages = timing.decode(item.text) or self.stages
            elif not (self.done or self.failure):
                self._event(t, item)

    def finish(self) -> None:
        """Take the end of the body: settle what only the usage can tell, and find out whether the end mark is missing."""
        counted = sum(tokens for _, tokens in self.chunks)
        if self._blank_at is not None and self.output_tokens is not None and counted < self.output_tokens:
            self.chunks.append((self._blank_at, 1))
        if self.failure is None and not self.done and (self._end_mark or self._decoder.incomplete):
            where = "inside an event" if self._decoder.incomplete else "without its end mark"
            self.failure = Failure(kind="truncated", message=f"the stream ended {where}")
        if self.failure is None and not self.chunks:
            self.failure = Failure(kind="protocol", message="the stream ended without a token")

    @property
    def text(self) -> str:
        """What was generated so far."""
        return "".join(self._text)

    @property
    def output_hash(self) -> str | None:
        """SHA-256 over the token ids or, without them, the text; None without output."""
        if self._ids:
            return hashlib.sha256(",".join(map(str, self._ids)).encode()).hexdigest()
        return hashlib.sha256(self.text.encode()).hexdigest() if self.chunks else None

    def _event(self, t: float, event: Event) -> None:
        if event.done:
            self.done = True
            return
        try:
            delta = self._reader.read(event.data)
        except msgspec.MsgspecError as error:
            self.failure = Failure(kind="protocol", message=f"an event is no chunk ({error}): {event.data[:80]!r}")
            return
        if delta.error is not None or event.name == "error":
            self.failure = Failure(kind="stream_error", message=(delta.error or event.data)[:MAX_MESSAGE])
            return
        self._take(t, delta)

    def _take(self, t: float, delta: Delta) -> None:
        if delta.tokens:
            self.chunks.append((t, delta.tokens))
        elif delta.blank:
            self._blank_at = t
        self._text.append(delta.text)
        self._ids.extend(delta.token_ids)
        if delta.prompt_tokens is not None:
            self.prompt_tokens = delta.prompt_tokens
        if delta.output_tokens is not None:
            self.output_tokens = delta.output_tokens
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.done = self.done or delta.last


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
    """True if the body is an event stream and not an error or something else."""
    head = exchange.head
    return (
        head is not None and head.status == 200 and head.headers.get("content-type", "").startswith("text/event-stream")
    )


def _failure(exchange: Exchange, reading: Reading) -> Failure | None:
    if exchange.head is not None and exchange.head.status != 200:
        return Failure(kind="status", message=f"{exchange.head.status}: {_body_message(exchange)}")
    if reading.failure is not None:
        return reading.failure  # what the server said goes before how the connection then ended
    if exchange.failure is not None and not (exchange.failure.kind == "truncated" and reading.done):
        # after the end mark a server may hang up without ending the body: nothing is missing
        return exchange.failure
    if not streamed(exchange):
        return Failure(kind="protocol", message=f"the answer is no event stream: {_body_message(exchange)}")
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
