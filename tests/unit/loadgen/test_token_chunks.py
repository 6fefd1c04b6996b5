"""Which chunks of an answer were tokens, when the first one came, and how many tokens each carried."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts import latency
from pd_contracts.http_answers import Head
from pd_contracts.records import RequestRecord
from pd_loadgen.client.backends import BACKENDS, Endpoint
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.client.stream import Reading, record
from pd_loadgen.client.token_chunks import Mark, settle

Sent = tuple[float, Any]
STREAM = Head(200, {"content-type": "text/event-stream"})
ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}


def said(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}], **more}


def words(count: int, start: float = 0.3, gap: float = 0.02, text: str = " w") -> list[Sent]:
    return [(start + gap * number, said(text)) for number in range(count)]


def end(at: float, finish: str | None, outputs: int | None) -> list[Sent]:
    parts: list[Sent] = [(at, {"choices": [{"delta": {}, "finish_reason": finish}]})] if finish else []
    if outputs is not None:
        parts.append((at, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": outputs}}))
    return [*parts, (at, "[DONE]")]


def read(sent: Sequence[Sent], asked: int = 8, endpoint: Endpoint = Endpoint.CHAT) -> RequestRecord:
    reads = [(at, f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()) for at, data in sent]
    reading = Reading(BACKENDS[endpoint], asked)
    for at, data in reads:
        reading.feed(at, data)
    exchange = Exchange(0.0, sent=0.0, headers_at=0.0, head=STREAM, reads=reads, end=reads[-1][0])
    return record(exchange, reading, index=0, id_="r", output_tokens=asked, warmup=False)


def first_and_counts(made: RequestRecord) -> tuple[float | None, list[int]]:
    assert made.error is None
    return latency.ttft(made), [tokens for _, tokens in made.chunks]


EMPTY_FIRST: list[Sent] = [(0.0003, said("")), *words(8)]


@pytest.mark.parametrize("outputs", [8, None])
@pytest.mark.parametrize(
    "sent",
    [
        EMPTY_FIRST,
        [(0.05 * number, said("")) for number in range(6)] + words(8),
        [(0.0003, ROLE), (0.0004, said("")), *words(8)],
        [(0.0003, {"choices": [], "prompt_filter_results": [{}]}), (0.0003, ROLE), *words(8)],
        [(0.0003, said("", tool_calls=[])), *words(8)],
    ],
    ids=["empty", "signs of life", "role and empty", "Azure", "empty list of calls"],
)
def test_an_empty_first_chunk_is_no_first_token(sent: list[Sent], outputs: int | None) -> None:
    assert first_and_counts(read([*sent, *end(0.5, "length", outputs)])) == (0.3, [1] * 8)


def test_a_first_chunk_without_text_is_no_first_token_of_completions_either() -> None:
    texts = [(0.0003, ""), *((0.3 + number * 0.02, " w") for number in range(8))]
    sent = [(at, {"choices": [{"text": text, "finish_reason": None}]}) for at, text in texts]
    made = read([*sent, (0.5, {"choices": [{"text": "", "finish_reason": "length"}]}), *end(0.5, None, 8)],
                endpoint=Endpoint.COMPLETIONS)  # fmt: skip

    assert first_and_counts(made) == (0.3, [1] * 8)


def test_a_first_chunk_whose_count_is_known_is_what_the_server_says() -> None:
    usages = [(0.0003, "", 0), *((0.3 + 0.02 * number, " w", number + 1) for number in range(8))]
    sent = [
        (at, said(text, usage={"prompt_tokens": 5, "completion_tokens": count})) for at, text, count in usages
    ]  # fmt: skip
    ids = [(0.1, {"choices": [{"delta": {"content": ""}, "token_ids": [7]}]}), (0.2, said("é"))]

    assert first_and_counts(read([*sent, *end(0.5, "length", 8)])) == (0.3, [1] * 8)
    assert first_and_counts(read([*ids, *end(0.3, "length", 2)])) == (0.1, [1, 1])


def test_tokens_whose_bytes_were_no_character_yet_belong_to_the_text_that_they_became() -> None:
    made = read([(0.1, said("")), (0.12, said("")), (0.14, said("鰻")), *words(5, 0.16), *end(0.3, "length", 8)])

    assert first_and_counts(made) == (0.14, [3, 1, 1, 1, 1, 1])
    assert latency.tpot(made) == pytest.approx(0.02)


def test_empty_chunks_between_tokens_are_tokens_if_the_usage_says_so() -> None:
    sent: list[Sent] = [*words(3), (0.36, said("")), (0.38, said("")), *words(3, 0.40)]

    assert first_and_counts(read([*sent, *end(0.5, "length", 8)], 8))[1] == [1] * 8
    assert first_and_counts(read([*sent, *end(0.5, "length", 6)], 6))[1] == [1] * 6
    assert first_and_counts(read([*sent, *end(0.5, "length", None)], 6))[1] == [1] * 6


def test_an_end_of_text_token_belongs_to_the_last_chunk() -> None:
    with_chunk = read([*words(3), (0.36, said("", "stop")), *end(0.36, None, 4)])
    without = read([*words(3), *end(0.36, "stop", 4)])

    assert first_and_counts(with_chunk)[1] == [1, 1, 1, 1]
    assert first_and_counts(without)[1] == [1, 1, 2]
    assert first_and_counts(read([*words(8, text=" w1"), *end(0.5, None, 9)]))[1] == [*[1] * 7, 2]


@pytest.mark.parametrize("outputs", [1, 4])
def test_an_answer_of_special_tokens_alone_has_the_time_of_its_last_chunk(outputs: int) -> None:
    made = read([(0.1, ROLE), (0.2, said("")), (0.3, said("", "stop")), *end(0.3, None, outputs)])

    assert made.chunks[-1][0] == 0.3
    assert sum(tokens for _, tokens in made.chunks) == outputs


@pytest.mark.parametrize("text", [" w", " w1", "你"])
def test_tokens_that_came_at_once_are_counted_where_they_came(text: str) -> None:
    bundle = read([(0.1, ROLE), (0.3, said(" x" * 16)), *words(16, 0.32, text=text), *end(0.7, "length", 32)], 32)
    drafts = read([(0.3 + 0.08 * number, said(" a b c d")) for number in range(8)] + end(1.0, "length", 32), 32)

    assert first_and_counts(bundle) == (0.3, [16, *[1] * 16])
    assert latency.tpot(bundle) == pytest.approx(0.02)
    assert first_and_counts(drafts) == (0.3, [4] * 8)
    assert latency.tpot(drafts) == pytest.approx(0.02)


def test_a_whole_answer_in_one_chunk_has_no_tpot() -> None:
    made = read([(0.1, ROLE), (0.5, said(" x" * 32)), *end(0.5, "length", 32)], 32)

    assert first_and_counts(made) == (0.5, [32])
    assert latency.tpot(made) is None


def test_usage_after_the_end_mark_is_taken() -> None:
    made = read([*words(8), (0.5, "[DONE]"), *end(0.5, None, 8)[:1]])

    assert (made.error, made.output_tokens) == (None, 8)


@pytest.mark.parametrize("finish", ["stop", "length", "content_filter", "tool_calls"])
def test_an_answer_that_says_why_it_ended_is_whole(finish: str) -> None:
    assert read([*words(3), *end(0.4, finish, None)]).error is None


def test_an_answer_that_was_cut_before_the_end_mark_is_a_failure() -> None:
    cut = read([*words(3), (0.4, "[DONE]")])
    as_asked = read([*words(8), (0.5, "[DONE]")])
    with_usage = read([*words(3), *end(0.4, None, 3)])

    assert cut.error is not None
    assert (cut.error.kind, len(cut.chunks)) == ("truncated", 3)
    assert (as_asked.error, with_usage.error) == (None, None)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["", " w", " a b c", "你好世界"]), st.booleans()), max_size=12
    ),
    st.one_of(st.none(), st.integers(0, 60)),
    st.booleans(),
)
def test_counts_never_exceed_the_usage_and_no_token_is_invented(
    chunks: list[tuple[int, str, bool]], total: int | None, stopped: bool
) -> None:
    marks = [
        Mark(float(at), tokens or int(bool(text)), bool(tokens), text) for at, (tokens, text, _) in enumerate(chunks)
    ]
    counted = settle(marks, total, stopped=stopped)
    certain = sum(bool(mark.tokens) for mark in marks)

    assert all(tokens > 0 for _, tokens in counted)
    assert {at for at, _ in counted} >= {mark.at for mark in marks if mark.tokens}
    if total is not None:
        assert sum(tokens for _, tokens in counted) <= max(total, certain)
    if total is None:
        assert counted == [(mark.at, mark.tokens) for mark in marks if mark.tokens]
