"""A relay passes a stream on in the same way however its bytes are split, and on each of its code paths."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.http_answers import AnswerReader
from pd_contracts.names import Role
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import BrokenReplyError, DisconnectedError
from pd_proxy.protocol.rewrite import StreamRewriter
from pd_proxy.protocol.wire import write_chunk
from pd_proxy.upstream.flights import Flight, Flights
from pd_proxy.upstream.relay import Relay
from pd_proxy.upstream.replies import Reply, Sink

SECRET = b"___prefill_addr_127.0.0.1:21001___decode_addr_127.0.0.1:22001_"
TOKEN = b'data: {"id":"cmpl-' + SECRET + b'1","choices":[{"text":"a"}]}\n\n'
PARAMS = b'data: {"id":"1","choices":[{"text":"a"}],"kv_transfer_params":{"remote_host":"10.0.0.1"}}\n\n'
ERROR = b'data: {"error":{"message":"lost 10.0.0.1:80"}}\n\n'
TEXT = b'data: {"id":"1","choices":[{"text":"say [DONE] or \\"error\\""}]}\n\n'
USAGE = b'data: {"id":"1","choices":[],"usage":{"completion_tokens":1}}\n\n'
SPACED = b'data:{"id": "1", "choices": [{"text": "a"}]}\n\n'
OLD_MAC = b'data: {"id":"1","choices":[{"text":"a"}]}\r: lost 10.0.0.1:80\n\n'
NAMED = b'data: {"id":"1","choices":[{"text":"a"}]}\revent: error\rdata: {"message":"10.0.0.1:80"}\n\n'
WINDOWS = b'data: {"id":"1"}\r\n\r\n'
END = b"data: [DONE]\n\n"


def chunked() -> AnswerReader:
    """A reader that expects chunks."""
    reader = AnswerReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    return reader


class Engine:
    """A connection that hands its bytes to a sink as `connections.Connection` does."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader = chunked()
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def abort(self) -> None: ...

    def deliver_to(self, sink: Sink) -> None:
        self._sink = sink
        self._shortcut = sink.shortcut(self.reader)

    def send(self, data: bytes) -> None:
        if (self._shortcut is None or not self._shortcut(data)) and (block := self.reader.feed(data)):
            self._sink.feed(block)


def flight() -> Flight:
    instance = Instance(
        name="decode-0", role=Role.DECODE, http_address="h:1", zmq_address="h:2", connector=None, incarnation=1
    )
    return Flights().open(instance)


def relay(secret: bytes) -> tuple[Engine, Relay, list[bytes], Flight]:
    """A relay from an engine into a list of what was written."""
    written: list[bytes] = []
    engine, one = Engine(), flight()
    found = Relay(one, Reply(engine, 200), StreamRewriter(secret, ("h:1",)), written.append)
    found.begin(b"", b"")
    return engine, found, written, one


def body(written: list[bytes]) -> bytes:
    chunks = chunked()
    return b"".join(chunks.feed(part) for part in written if part)


@given(
    st.lists(
        st.lists(
            st.sampled_from([TOKEN, PARAMS, ERROR, TEXT, USAGE, SPACED, WINDOWS, OLD_MAC]), min_size=1, max_size=3
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 2000), max_size=10),
    st.sampled_from([b"", SECRET]),
)
async def test_the_way_of_the_bytes_does_not_matter(parts: list[list[bytes]], cuts: list[int], secret: bytes) -> None:
    blocks = [b"".join(part) for part in parts] + [END]
    data = b"".join(write_chunk(block) for block in blocks)
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    plain = StreamRewriter(secret, ("h:1",))
    expected = b"".join(plain.feed(block) for block in blocks)

    for pieces in ([write_chunk(block) for block in blocks], [data[a:b] for a, b in pairwise(edges)]):
        engine, one, written, _ = relay(secret)
        for piece in pieces:
            engine.send(piece)
        # An event that is looked into ends with LF, and so do those that were read with it.
        assert body(written).replace(b"\r\n", b"\n") == expected.replace(b"\r\n", b"\n")
        assert one.done.done()
        assert secret not in expected or not secret


def said(text: bytes) -> bytes:
    return b'data: {"id":"1","choices":[{"text":"%b","finish_reason":null}]}\n\n' % text


TEXTS = st.text('ab"\\n}{]:,ué ', max_size=8).map(str.encode)


@given(st.lists(TEXTS, min_size=1, max_size=6))
async def test_events_that_differ_in_their_text_are_all_checked(texts: list[bytes]) -> None:
    engine, one, written, _ = relay(b"")
    plain, expected = StreamRewriter(b"", ("h:1",)), b""
    for text in (b"x", b"y", *texts):
        engine.send(write_chunk(said(text)))
        try:
            expected += plain.feed(said(text))
        except BrokenReplyError:
            assert isinstance(one.done.exception(), BrokenReplyError)
            break
    assert body(written) == expected


@pytest.mark.parametrize(
    "broken",
    [
        b'data: {"choices":[{oops at 10.1.2.3:80}\n\n',
        b"data: {oops}\n\n",
        said(b"x")[:-2] + b"}\n\n",
        said(b"x")[:-2] + said(b"y")[6:],
        said(b'x"y'),
        said(b"x\\"),
        said(b"\xff"),
        said("é".encode()[:1]),
        said(b"a\tb"),
        b"data: no object\n\n",
        b"data: 5\n\n",
    ],
)
async def test_an_event_that_ends_like_an_object_and_is_none_is_not_passed_on(broken: bytes) -> None:
    for before in (0, 1, 3):
        engine, one, written, _ = relay(b"")
        for block in (said(b"a"),) * before:
            engine.send(write_chunk(block))
        engine.send(write_chunk(broken))
        assert isinstance(one.done.exception(), BrokenReplyError)
        assert body(written) == said(b"a") * before


@pytest.mark.parametrize(
    "block", [OLD_MAC, NAMED, OLD_MAC.replace(b"\n\n", b"\r\r"), OLD_MAC.replace(b"\n\n", b"\r\n\n")]
)
async def test_no_line_hides_behind_the_carriage_return_before_it(block: bytes) -> None:
    engine, _, written, _ = relay(b"")
    engine.send(write_chunk(TEXT))
    engine.send(write_chunk(block))
    assert b"choices" in body(written)
    assert b"10.0.0.1" not in body(written)


async def test_a_chunk_counts_as_progress_and_the_next_is_waited_for() -> None:
    engine, _, _, one = relay(SECRET)
    one.held_up()
    engine.send(write_chunk(TOKEN))
    assert one.since is not None
    assert one.moved_at > 0


@pytest.mark.parametrize(
    ("block", "progress"),
    [
        (TEXT, True),
        (SPACED, True),
        (USAGE, False),
        (TEXT + USAGE, True),
        (USAGE + TEXT, True),
        (USAGE + USAGE, False),
        (b"data: {}\n\n", False),
        (b'data: {"object":"x"}\n\n', False),
    ],
)
async def test_only_events_with_a_choice_are_progress(*, block: bytes, progress: bool) -> None:
    for cut in (0, 9):  # as a whole, which has a shortcut, and in two reads
        engine, _, written, one = relay(b"")
        chunk = write_chunk(block)
        for data in (chunk[:cut], chunk[cut:]):
            engine.send(data)
        assert body(written) == block
        assert (one.moved_at > 0) is progress


async def test_a_client_that_takes_nothing_keeps_the_engine_waiting_and_nobody_waits_for_the_engine() -> None:
    engine, one, written, one_flight = relay(b"")
    one.pause()
    assert engine.paused
    engine.send(write_chunk(TOKEN))  # what had been read already
    assert one_flight.since is None
    assert written
    one.resume()
    resumed: bool = engine.paused
    assert not resumed
    assert one_flight.since is not None


async def test_without_its_end_mark_a_stream_is_cut() -> None:
    engine, one, _, _ = relay(b"")
    engine.send(write_chunk(TOKEN))
    one.ended(whole=True)
    with pytest.raises(DisconnectedError):
        await one.done


@pytest.mark.parametrize("shortcut", [False, True], ids=["feed", "shortcut"])
async def test_a_client_whose_connection_is_closed_already_is_no_error_of_the_engines(*, shortcut: bool) -> None:
    """uvloop closes it a moment before its protocol hears of that, and refuses writes meanwhile."""

    closed = False

    def write(_: bytes) -> None:
        if closed:
            msg = "the handler is closed"
            raise RuntimeError(msg)

    engine, one = Engine(), flight()
    Relay(one, Reply(engine, 200), StreamRewriter(b"", ("h:1",)), write).begin(b"", b"")
    chunk, closed = write_chunk(TEXT), True
    for data in (chunk, chunk) if shortcut else (chunk[:20], chunk[20:], chunk):
        engine.send(data)
    assert one.events == 1
