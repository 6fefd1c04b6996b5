"""From stamped bytes to a record: what is a token, when it came, and what is a failure."""

import hashlib
import itertools
import json
from collections.abc import Iterable

import pytest

from pd_contracts.http_answers import Head
from pd_contracts.records import Failure, RequestRecord
from pd_loadgen.client.backends import BACKENDS, Endpoint
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.client.stream import Reading, record, streamed

STREAM = Head(200, {"content-type": "text/event-stream; charset=utf-8"})


def event(data: object, *, end: str = "\n") -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}{end}{end}".encode()


def token(text: str = " t", finish: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"text": text, "finish_reason": finish, **more}]}


def usage(outputs: int, prompts: int = 5) -> dict[str, object]:
    return {"choices": [], "usage": {"prompt_tokens": prompts, "completion_tokens": outputs}}


DONE = event("[DONE]")
WHOLE = event(token()) + event(token()) + event(token(finish="length")) + event(usage(3)) + DONE


def read(
    reads: Iterable[tuple[float, bytes]],
    *,
    endpoint: Endpoint = Endpoint.COMPLETIONS,
    head: Head | None = STREAM,
    failure: Failure | None = None,
) -> RequestRecord:
    exchange = Exchange(1.0, sent=1.5, headers_at=1.75, head=head, reads=list(reads), end=9.0, failure=failure)
    reading = Reading(BACKENDS[endpoint])
    if streamed(exchange):
        for t, data in exchange.reads:
            reading.feed(t, data)
    return record(exchange, reading, index=4, id_="run/r4", output_tokens=3, warmup=False)


def test_a_whole_stream_becomes_a_record() -> None:
    made = read(
        [(2.0, event(token())), (3.0, event(token())), (4.0, event(token(finish="length")) + event(usage(3)) + DONE)]
    )

    assert made.error is None
    assert made.chunks == [(2.0, 1), (3.0, 1), (4.0, 1)]
    assert (made.prompt_tokens, made.output_tokens, made.requested_output_tokens) == (5, 3, 3)
    assert (made.index, made.id, made.status, made.finish_reason) == (4, "run/r4", 200, "length")
    assert (made.scheduled, made.sent, made.headers, made.first_byte, made.end) == (1.0, 1.5, 1.75, 2.0, 9.0)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_found_wherever_the_bytes_are_split(end: str) -> None:
    whole = b"".join(event(data, end=end) for data in (token(" é"), token(), usage(2), "[DONE]"))
    for cut in range(1, len(whole)):
        made = read([(2.0, whole[:cut]), (3.0, whole[cut:])])
        assert made.error is None, cut
        assert [tokens for _, tokens in made.chunks] == [1, 1], cut
        assert made.output_hash == read([(2.0, whole)]).output_hash, cut


def test_an_event_is_stamped_with_the_read_that_completes_it() -> None:
    first = event(token())
    made = read([(2.0, first[:10]), (3.0, first[10:] + event(token())), (4.0, event(usage(2)) + DONE)])

    assert made.chunks == [(3.0, 1), (3.0, 1)]
    assert made.first_byte == 2.0


def test_role_only_and_usage_chunks_are_no_tokens() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    word = {"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}
    stop = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    parts = [(float(second), event(data)) for second, data in enumerate([role, word, stop, usage(1), "[DONE]"])]

    made = read(parts, endpoint=Endpoint.CHAT)

    assert made.chunks == [(1.0, 1)]
    assert made.finish_reason == "stop"


@pytest.mark.parametrize(("outputs", "expected"), [(2, [(2.0, 1), (3.0, 1)]), (1, [(2.0, 1)])])
def test_the_usage_tells_whether_an_empty_last_chunk_was_a_token(
    outputs: int, expected: list[tuple[float, int]]
) -> None:
    made = read([(2.0, event(token())), (3.0, event(token("", "stop"))), (4.0, event(usage(outputs)) + DONE)])

    assert made.chunks == expected


def test_without_usage_the_counts_are_unknown() -> None:
    made = read([(2.0, event(token()) + DONE)])

    assert made.error is None
    assert (made.prompt_tokens, made.output_tokens) == (None, None)


def test_token_ids_are_counted_and_hashed() -> None:
    made = read(
        [(2.0, event(token(" a b", token_ids=[7, 8])) + event(token(" c", token_ids=[9])) + event(usage(3)) + DONE)]
    )

    assert made.chunks == [(2.0, 2), (2.0, 1)]
    assert made.output_hash == hashlib.sha256(b"7,8,9").hexdigest()


def test_equal_text_has_equal_hashes_however_it_was_cut() -> None:
    one = read([(2.0, event(token("ab")) + event(token("c")) + DONE)])
    other = read([(2.0, event(token("a")) + event(token("bc")) + DONE)])

    assert one.output_hash == other.output_hash == hashlib.sha256(b"abc").hexdigest()


def test_the_timing_comment_becomes_stages() -> None:
    comment = b': pd-timing {"queue":1,"prefill":2,"kv_and_first_decode":3,"decode":4,"decode_instance":"decode-0"}\n\n'
    made = read([(2.0, event(token()) + b": keep-alive\n\n" + comment + DONE)])

    assert made.stages is not None
    assert (made.stages.prefill, made.stages.decode_instance) == (2, "decode-0")


def test_a_broken_timing_comment_costs_nothing() -> None:
    made = read([(2.0, event(token()) + b": pd-timing {oops\n\n" + DONE)])

    assert (made.error, made.stages) == (None, None)


def kind(made: RequestRecord) -> str:
    assert made.error is not None
    return made.error.kind


def test_a_stream_without_its_end_mark_is_truncated_and_keeps_its_tokens() -> None:
    made = read([(2.0, event(token()))])

    assert kind(made) == "truncated"
    assert made.chunks == [(2.0, 1)]


def test_every_cut_of_a_stream_is_a_failure() -> None:
    for cut in range(len(WHOLE) - 2):
        made = read([(2.0, WHOLE[:cut])])
        assert kind(made) == "truncated", cut


@pytest.mark.parametrize(
    "data", [event({"error": {"message": "decode lost the KV"}}), b"event: error\n" + event("decode lost the KV")]
)
def test_an_error_event_fails_the_request_with_the_servers_words(data: bytes) -> None:
    if data.startswith(b"event"):
        data = b'event: error\ndata: {"message": "decode lost the KV"}\n\n'
    made = read([(2.0, event(token()) + data + DONE)])

    assert kind(made) == "stream_error"
    assert made.error is not None
    assert "decode lost the KV" in made.error.message
    assert len(made.chunks) == 1


def test_an_error_event_explains_more_than_the_hang_up_after_it() -> None:
    hung_up = Failure(kind="truncated", message="the connection broke")

    assert kind(read([(2.0, event({"error": "lost"}))], failure=hung_up)) == "stream_error"


def test_malformed_json_in_an_event_is_a_protocol_failure() -> None:
    assert kind(read([(2.0, event("{oops") + DONE)])) == "protocol"


def test_a_stream_without_a_token_is_a_protocol_failure() -> None:
    assert kind(read([(2.0, event(usage(0)) + DONE)])) == "protocol"


def test_a_bad_status_is_a_failure_with_the_servers_message() -> None:
    made = read(
        [(2.0, b'{"error": {"message": "no model", "code": 404}}')],
        head=Head(404, {"content-type": "application/json"}),
    )

    assert made.error == Failure(kind="status", message="404: no model")
    assert made.status == 404


@pytest.mark.parametrize(
    ("body", "message"), [(b"", "no body"), (b"<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"), (b"\xff", "\ufffd")]
)
def test_any_error_body_gives_a_message(body: bytes, message: str) -> None:
    made = read([(2.0, body)] if body else [], head=Head(502, {}))

    assert made.error == Failure(kind="status", message=f"502: {message}")


def test_a_success_that_is_no_stream_is_a_protocol_failure() -> None:
    assert kind(read([(2.0, b'{"choices": []}')], head=Head(200, {"content-type": "application/json"}))) == "protocol"


@pytest.mark.parametrize("failing", ["timeout", "aborted", "truncated"])
def test_what_broke_below_the_stream_is_the_failure(failing: str) -> None:
    broken = Failure(kind=failing, message="x")

    assert read([(2.0, event(token()))], failure=broken).error == broken


def test_a_connection_that_was_never_made_leaves_nothing_but_the_failure() -> None:
    refused = Failure(kind="connect", message="refused")
    made = read([], head=None, failure=refused)

    assert (made.error, made.chunks, made.first_byte, made.status, made.output_hash) == (refused, [], None, None, None)


def test_hanging_up_after_the_end_mark_is_no_failure() -> None:
    assert read([(2.0, WHOLE)], failure=Failure(kind="truncated", message="closed")).error is None


def test_what_comes_after_the_end_mark_counts_for_nothing() -> None:
    assert read([(2.0, WHOLE + event(token()))]).chunks == [(2.0, 1)] * 3


def test_slices_of_any_size_give_the_same_record() -> None:
    for size in (1, 7, 64, 1000):
        parts = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
        made = read(zip(itertools.repeat(2.0), parts))
        assert made == read([(2.0, WHOLE)]), size
