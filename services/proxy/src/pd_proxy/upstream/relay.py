"""Passes a stream's bytes from an engine to a client in the callback in which they arrive."""

import asyncio
import re
from collections.abc import Callable
from typing import Final

from pd_contracts.http_answers import AnswerReader
from pd_proxy.errors import DisconnectedError, ProxyError
from pd_proxy.protocol import rewrite
from pd_proxy.protocol.rewrite import ERROR_KEY, EVENT_BEGINNINGS, KV_KEY
from pd_proxy.protocol.wire import CHUNK, beginnings
from pd_proxy.upstream.flights import Flight
from pd_proxy.upstream.replies import Reply

# The end of an event.
END: Final = b"\n\n"
# A chunk that holds one event of one line: its next line end behind that of its size, which is in these bytes, is the event's. A line may
# also end with CR alone, and the only one here is the chunk's.
BEHIND_SIZE: Final = 8
ENDS_BYTES: Final = len(b"\n\n\r\n")
CHUNK_END_BYTES: Final = len(b"\r\n")
# How a chunk begins that is a whole read of so many bytes, and holds events.
BEGINNINGS: Final = beginnings(EVENT_BEGINNINGS)
# The key of what differs from one event of a stream to the next.
TEXT_KEY: Final = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)": ?"')
QUOTE: Final = b'"'
ESCAPE: Final = b"\\"
# What no chunk has around its text.
UNKNOWN: Final = (b"\n", b"\n", 0, 1)
# How many events in a row may differ in more than their text. Then they are not checked any more, because that costs as much as everything else.
PATIENCE: Final = 8


class Rest:
    """The sink of what comes after the end mark, which is ignored."""

    def __init__(self, close: Callable[[], None], timer: asyncio.TimerHandle) -> None:
        """`close` is called at the end of the answer, unless `timer` has called it before."""
        self._close = close
        self._timer = timer

    def feed(self, data: bytes) -> None: ...

    def shortcut(self, reader: AnswerReader) -> None: ...

    def ended(self, *, whole: bool) -> None:  # noqa: ARG002  the answer was complete before
        self._timer.cancel()
        self._close()


class Relay:
    """Passes a stream on as it arrives, as chunks of HTTP/1.1, without waking a task per chunk.

    `done` is what to wait for; it raises UpstreamError.
    """

    def __init__(
        self, flight: Flight, reply: Reply, rewriter: rewrite.StreamRewriter, write: Callable[[bytes], None]
    ) -> None:
        self.done: asyncio.Future[None] = flight.loop.create_future()
        self._flight = flight
        self._reply = reply
        self._rewriter = rewriter
        self._write = write
        self._held_up = False
        self._over = False
        self._by_chunks = False

    def begin(self, head: bytes, block: bytes) -> None:
        """Write a response's head and the first events, then everything that arrives. The end mark must not have arrived yet."""
        self._flight.events += block.count(END)
        self._put(head + CHUNK % (len(block), block) if block else head)
        if not self._held_up:
            self._flight.waits()
        self._reply.connect(self)

    def _put(self, data: bytes) -> bool:
        """Write, unless the client is gone."""
        try:
            self._write(data)
        except RuntimeError:  # from uvloop, if the client's connection is closed; its protocol is told in a moment
            self._over = True
        return not self._over

    def feed(self, data: bytes) -> None:
        """A part of the stream has arrived. This runs once per chunk, so every call in it matters."""
        if self._over:
            return
        try:
            block = self._rewriter.feed(data)
        except ProxyError as error:
            self._end(error)
            return
        if self._rewriter.moves(block):
            self._flight.progressed()
        if block:
            self._flight.events += block.count(END)
            if not self._put(CHUNK % (len(block), block)):
                return
        if self._rewriter.done:
            self._end()
        elif self._held_up:
            self._flight.held_up()
        if self._rewriter.by_chunks and not self._by_chunks:
            self._reply.shorten(self)

    def shortcut(self, reader: AnswerReader) -> Callable[[bytes], bool] | None:
        """A function for the usual case: one whole chunk of one whole event that needs no change. It is one line of JSON, so it is no end mark.

        It does what `reader` and the rewriter would do, in one function and without needless copies. Most events differ only in their text
        from one that was checked before: then it is enough to compare what is around the text.
        """
        flight, rewriter, write = self._flight, self._rewriter, self._write
        self._by_chunks = rewriter.by_chunks
        if not rewriter.by_chunks:
            return None
        tally, secret, put, mark, glance = flight.tally, rewriter.secret, rewriter.put, rewriter.mark, rewriter.glance
        time, is_text = flight.loop.time, rewrite.is_text
        # What the last checked event has before and behind its text, and where the former and the text begin. The first chunk differs from this.
        before, behind, begin, start = UNKNOWN
        strikes = 0

        def take(data: bytes) -> bool:
            nonlocal before, behind, begin, start, strikes
            if (
                not data.startswith(BEGINNINGS.get(len(data), ()))
                or not reader.whole_chunk
                or rewriter.rest
                or self._over
                or self._held_up
            ):
                return False
            end = len(data) - len(behind)
            if (
                data.startswith(before, begin)
                and data.endswith(behind)
                # Decoding it takes a third of the time of looking for what no text may hold.
                and is_text(data[start - 1 : end + 1])
            ):
                strikes = 0
            elif not passes(data, mark, whole=strikes < PATIENCE):
                return False
            elif strikes < PATIENCE:
                strikes += 1
                before, behind, begin, start = around_text(data)
            flight.since = flight.moved_at = tally.last_progress = time()
            flight.events += 1
            if secret:
                block = data[data.find(b"\n") + 1 : -2].replace(secret, put)
                data = CHUNK % (len(block), block)
            if glance is not None:
                block = glance(data[data.find(b"\n") + 1 : -2])
                data = CHUNK % (len(block), block)
            try:
                write(data)
            except RuntimeError:  # as in `_put`
                self._over = True
            return True

        return take

    def ended(self, *, whole: bool) -> None:  # noqa: ARG002  the end mark says whether the stream is whole
        if self._over:
            return
        try:
            block = ending(self._flight, self._rewriter)
        except ProxyError as error:
            self._end(error)
            return
        self._flight.events += block.count(END)
        if not block or self._put(CHUNK % (len(block), block)):
            self._end()

    def pause(self) -> None:
        """The client does not read what it was sent, so stop reading from the engine."""
        self._held_up = True
        self._flight.held_up()
        self._reply.pause()

    def resume(self) -> None:
        self._held_up = False
        if not self._over:
            self._flight.waits()
        self._reply.resume()

    def _end(self, error: ProxyError | None = None) -> None:
        self._over = True
        if self.done.done():
            return  # nothing waits for it any more
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


def passes(data: bytes, mark: bytes, *, whole: bool) -> bool:
    """Whether a chunk is one event of one line that needs no change; `whole`: whether all of it is JSON."""
    # `rfind` as in `rewrite.holds`, without the call.
    choice, spaced_choice = rewrite.SOME_CHOICE
    return (
        data.endswith(b"}\n\n\r\n")
        and (data.rfind(choice) >= 0 or data.rfind(spaced_choice) >= 0)
        and data.find(b"\n", BEHIND_SIZE) == len(data) - ENDS_BYTES
        and data.find(b"\r", BEHIND_SIZE) == len(data) - CHUNK_END_BYTES
        and data.rfind(ERROR_KEY) < 0
        and data.rfind(KV_KEY) < 0
        and (mark is KV_KEY or data.rfind(mark) < 0)
        and (not whole or rewrite.is_json(data[data.find(b"{") : -ENDS_BYTES]))
    )


def around_text(data: bytes) -> tuple[bytes, bytes, int, int]:
    """What a chunk of one event has between its size and its text, what comes behind the text, and where the former and the text begin.

    Both parts are such that every other text without a quote, an escape or a line end between them makes JSON, too.
    """
    found = TEXT_KEY.search(data)
    if found is None:
        return UNKNOWN
    start = found.end()
    end = data.find(QUOTE, start)
    if data.find(ESCAPE, start, end) >= 0:
        return UNKNOWN
    begin = data.find(b"\n") + 1
    return data[begin:start], data[end:], begin, start


def ending(flight: Flight, rewriter: rewrite.StreamRewriter) -> bytes:
    """The events that the end of a stream's answer completes.

    Raises:
        UpstreamError: if the stream was cut off.
    """
    block = rewriter.finish()
    if flight.failure is not None or not rewriter.done:
        raise flight.failure or DisconnectedError.by(flight.instance.name)
    return block
