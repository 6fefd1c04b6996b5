"""The protocols of SGLang, TGI, TensorRT-LLM and DeepSpeed-MII: what is asked, and recorded answers read to records."""

import hashlib
import json

import msgspec
import pytest
from support.recorded_streams import FAILURES, MII, REFUSALS, STREAMS, TRTLLM, Recorded

from pd_contracts.http_answers import Head
from pd_contracts.records import Failure, RequestRecord
from pd_loadgen.client.backends import BACKENDS, Ask, Endpoint, Sampling, UnsuitableError
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.client.stream import Reading, record

HEAD = Head(200, {"content-type": "text/event-stream"})

streams = pytest.mark.parametrize("one", STREAMS, ids=lambda one: one.name)


def read(endpoint: Endpoint, reads: list[bytes], failure: Failure | None = None, head: Head = HEAD) -> RequestRecord:
    """The record of an answer whose reads came a second apart, from second 2 on."""
    stamped = [(float(number), data) for number, data in enumerate(reads, 2)]
    exchange = Exchange(1.0, sent=1.0, headers_at=1.5, head=head, reads=stamped, end=9.0, failure=failure)
    reading = Reading(BACKENDS[endpoint])
    for t, data in stamped:
        reading.feed(t, data)
    return record(exchange, reading, index=0, id_="r", output_tokens=3, warmup=False)


def blocks(body: bytes) -> list[bytes]:
    """One read an event, as servers write them."""
    return [block + b"\n\n" for block in body.split(b"\n\n")[:-1]]


def tokens(made: RequestRecord) -> tuple[int, ...]:
    return tuple(count for _, count in made.chunks)


def hashed(one: Recorded) -> str:
    """What the record says of the output: of the ids where the protocol sends one with each token, else of the text."""
    if one.endpoint is Endpoint.TGI:
        found = [
            json.loads(line.partition(b":")[2])["token"]["id"]
            for line in one.body.splitlines()
            if line.startswith(b"data")
        ]
        return hashlib.sha256(",".join(map(str, found)).encode()).hexdigest()
    return hashlib.sha256(one.text.encode()).hexdigest()


@streams
def test_a_recorded_stream_is_read(one: Recorded) -> None:
    made = read(one.endpoint, blocks(one.body))

    assert made.error is None
    assert tokens(made) == one.tokens
    assert (made.prompt_tokens, made.output_tokens) == one.usage
    assert made.finish_reason == one.finish
    assert made.output_hash == hashed(one)


@streams
def test_each_token_has_the_stamp_of_its_own_event(one: Recorded) -> None:
    stamps = [at for at, _ in read(one.endpoint, blocks(one.body)).chunks]

    assert stamps == sorted(set(stamps))


@streams
def test_a_recorded_stream_split_anywhere_is_the_same(one: Recorded) -> None:
    whole = read(one.endpoint, [one.body])

    for made in (read(one.endpoint, [one.body[:cut], one.body[cut:]]) for cut in range(1, len(one.body))):
        assert made.error is None
        assert (tokens(made), made.output_hash, made.finish_reason) == (
            tokens(whole),
            whole.output_hash,
            whole.finish_reason,
        )
    byte_by_byte = read(one.endpoint, [bytes([byte]) for byte in one.body])
    assert (tokens(byte_by_byte), byte_by_byte.output_hash) == (tokens(whole), whole.output_hash)


@streams
@pytest.mark.parametrize(
    "comment", [b":\n\n", b": \n\n", b": keep-alive\n\n", b": ping - 2026-11-21 03:00:00+00:00\r\n\r\n"]
)
def test_what_keeps_a_connection_alive_is_no_event(one: Recorded, comment: bytes) -> None:
    """TGI's axum sends an empty comment every 15 s, sse-starlette one with the time."""
    bare = read(one.endpoint, blocks(one.body))
    made = read(one.endpoint, [comment, *(part for block in blocks(one.body) for part in (block, comment))])

    assert made.error is None
    assert (tokens(made), made.output_hash) == (tokens(bare), bare.output_hash)


@streams
def test_line_ends_of_windows_make_no_difference(one: Recorded) -> None:
    made = read(one.endpoint, [one.body.replace(b"\n", b"\r\n")])

    assert (made.error, tokens(made)) == (None, one.tokens)


@pytest.mark.parametrize("one", [one for one in STREAMS if one.end_mark], ids=lambda one: one.name)
def test_a_stream_without_its_last_event_is_truncated(one: Recorded) -> None:
    error = read(one.endpoint, blocks(one.body)[:-1]).error

    assert error is not None
    assert error.kind == "truncated"


def test_tensorrt_llm_is_whole_only_if_its_body_is() -> None:
    cut = Failure(kind="truncated", message="the connection ended")

    assert read(Endpoint.TRTLLM, blocks(TRTLLM.body)[:2], cut).error == cut


def test_deepspeed_mii_breaks_the_connection_off_when_its_engine_fails() -> None:
    """Recorded with the stream itself: two events, and then the chunked body has no end."""
    cut = Failure(kind="truncated", message="the server closed the connection in the middle of the answer")
    made = read(Endpoint.DEEPSPEED_MII, blocks(MII.body)[:2], cut)

    assert made.error == cut
    assert tokens(made) == (1, 1)


@pytest.mark.parametrize(("endpoint", "body", "words"), [one[1:] for one in FAILURES], ids=[one[0] for one in FAILURES])
def test_a_failure_in_the_stream_is_one_of_the_request(endpoint: Endpoint, body: bytes, words: str) -> None:
    for reads in ([body], blocks(body)):
        error = read(endpoint, reads).error
        assert error is not None
        assert error.kind == "stream_error"
        assert words in error.message


@pytest.mark.parametrize(("status", "body", "words"), [one[1:] for one in REFUSALS], ids=[one[0] for one in REFUSALS])
def test_a_refusal_is_told_in_the_servers_words(status: int, body: bytes, words: str) -> None:
    made = read(Endpoint.DEEPSPEED_MII, [body], head=Head(status, {"content-type": "application/json"}))

    assert made.error == Failure(kind="status", message=f"{status}: {words}")


def test_sglangs_new_text_may_begin_with_all_that_was_said() -> None:
    """Without the ids, "!" after "!" could be the same text again."""
    said = [
        b'data: {"text":"!","output_ids":[%d],"meta_info":{"prompt_tokens":1,"completion_tokens":%d,"finish_reason":%s}}\n\n'
        % parts
        for parts in ((0, 1, b"null"), (0, 2, b"null"), (0, 3, b'{"type":"length","length":3}'))
    ]
    made = read(Endpoint.SGLANG, [*said, b"data: [DONE]\n\n"])

    assert tokens(made) == (1, 1, 1)
    assert made.output_hash == hashlib.sha256(b"!!!").hexdigest()


def body(endpoint: Endpoint, prompt: str | list[int], ask: Ask) -> dict[str, object]:
    made = json.loads(BACKENDS[endpoint].body(prompt, ask))
    assert isinstance(made, dict)
    return made


def test_sglang_takes_ids_and_text_and_nests_its_sampling() -> None:
    ask = Ask("m", 9, ignore_eos=True, sampling=Sampling(temperature=0.7, top_p=0.9))

    assert body(Endpoint.SGLANG, [1, 2], ask) == {
        "input_ids": [1, 2],
        "sampling_params": {"temperature": 0.7, "max_new_tokens": 9, "top_p": 0.9, "ignore_eos": True},
        "stream": True,
    }
    assert body(Endpoint.SGLANG, "hi", ask)["text"] == "hi"


def test_tgi_is_asked_greedily_without_a_temperature() -> None:
    assert body(Endpoint.TGI, "hi", Ask("m", 9, ignore_eos=True)) == {
        "inputs": "hi",
        "parameters": {"max_new_tokens": 9, "details": True, "do_sample": False, "ignore_eos_token": True},
    }
    sampled = body(Endpoint.TGI, "hi", Ask("m", 9, sampling=Sampling(temperature=0.5)))["parameters"]
    assert isinstance(sampled, dict)
    assert (sampled["do_sample"], sampled["temperature"]) == (True, 0.5)


def test_tensorrt_llm_is_told_a_shortest_length() -> None:
    assert body(Endpoint.TRTLLM, "hi", Ask("m", 9, ignore_eos=True)) == {
        "text_input": "hi",
        "max_tokens": 9,
        "temperature": 0.0,
        "stream": True,
        "accumulate_tokens": False,
        "min_length": 9,
    }


def test_deepspeed_mii_is_made_greedy_and_told_a_shortest_length() -> None:
    assert body(Endpoint.DEEPSPEED_MII, "hi", Ask("m", 9, ignore_eos=True)) == {
        "model": "m",
        "prompt": "hi",
        "max_tokens": 9,
        "stream": True,
        "top_k": 1,
        "min_tokens": 9,
    }


@pytest.mark.parametrize("endpoint", [Endpoint.SGLANG, Endpoint.TGI, Endpoint.TRTLLM])
@pytest.mark.parametrize("data", ["", "{", "[]", "{}", '{"text": 7, "token": 7, "text_output": 7}'])
def test_what_is_no_event_of_the_protocol_is_refused(endpoint: Endpoint, data: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        BACKENDS[endpoint].reader().read(data)


@pytest.mark.parametrize("endpoint", [Endpoint.TGI, Endpoint.TRTLLM, Endpoint.DEEPSPEED_MII])
def test_what_takes_text_refuses_token_ids_with_a_remedy(endpoint: Endpoint) -> None:
    with pytest.raises(UnsuitableError, match="dataset text"):
        BACKENDS[endpoint].body([1, 2], Ask("m", 9))
