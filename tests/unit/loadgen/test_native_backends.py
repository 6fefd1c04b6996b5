"""Streams as SGLang, TGI, TensorRT-LLM and DeepSpeed-MII send them, read to records.

Where their public documentation shows a stream as it came over the wire, the bytes here have that form: TGI's (the answers to curl in
its README and in deployments' guides: no space after `data:`) and TensorRT-LLM's (Triton's guides to `generate_stream`: log
probabilities that grow from event to event, and a sequence that never ends). The others follow the servers' sources.
"""

import json
from collections.abc import Sequence

import msgspec
import pytest

from pd_contracts.records import Failure, RequestRecord
from pd_loadgen.backends import BACKENDS, Ask, Endpoint, Sampling, UnsuitableError
from pd_loadgen.exchange import Exchange
from pd_loadgen.http1 import Head
from pd_loadgen.stream import Reading, record

HEAD = Head(200, {"content-type": "text/event-stream"})


def read(endpoint: Endpoint, events: Sequence[str], failure: Failure | None = None) -> RequestRecord:
    space = "" if endpoint is Endpoint.TGI else " "
    return read_wire(endpoint, [f"data:{space}{event}\n\n" for event in events], failure)


def read_wire(endpoint: Endpoint, blocks: Sequence[str], failure: Failure | None = None) -> RequestRecord:
    reads = [(float(number), block.encode()) for number, block in enumerate(blocks, 2)]
    exchange = Exchange(1.0, sent=1.0, headers_at=1.5, head=HEAD, reads=reads, end=9.0, failure=failure)
    reading = Reading(BACKENDS[endpoint])
    for t, data in reads:
        reading.feed(t, data)
    return record(exchange, reading, index=0, id_="r", output_tokens=3, warmup=False)


def body(endpoint: Endpoint, prompt: str | list[int], ask: Ask) -> dict[str, object]:
    made = json.loads(BACKENDS[endpoint].body(prompt, ask))
    assert isinstance(made, dict)
    return made


def sglang(text: str, tokens: int, finish: object = None) -> str:
    meta = {"id": "0a", "finish_reason": finish, "prompt_tokens": 5, "completion_tokens": tokens, "cached_tokens": 0}
    return json.dumps({"text": text, "output_ids": [1], "meta_info": meta})


SGLANG = [
    sglang(" a", 1),
    sglang(" a b c", 3),
    sglang(" a b c d", 4, {"type": "length", "length": 4}),
    "[DONE]",
]
TGI = [
    '{"index":1,"token":{"id":23090,"text":" a","logprob":-1.5,"special":false},"generated_text":null,"details":null}',
    '{"index":2,"token":{"id":264,"text":" b","logprob":-0.2,"special":false},"generated_text":null,"details":null}',
    (
        '{"index":3,"token":{"id":2,"text":"</s>","logprob":-0.1,"special":true},"generated_text":" a b",'
        '"details":{"finish_reason":"eos_token","generated_tokens":3,"seed":null,"input_length":5}}'
    ),
]
TRTLLM = [
    json.dumps(
        {
            "context_logits": 0.0,
            "cum_log_probs": 0.0,
            "generation_logits": 0.0,
            "model_name": "ensemble",
            "model_version": "1",
            # a number at first, a list of as many as there are tokens from the second on
            "output_log_probs": 0.0 if number == 1 else [0.0] * number,
            "sequence_end": False,
            "sequence_id": 0,
            "sequence_start": False,
            "text_output": text,
        },
        separators=(",", ":"),
    )
    for number, text in enumerate((" a", "", " c"), 1)
]
MII = [
    (
        '{"id": "cmpl-x", "object": "text_completion", "choices": [{"index": 0, "text": " a", "logprobs": null, '
        '"finish_reason": null}], "model": "m"}'
    ),
    (
        '{"id": "cmpl-x", "object": "text_completion", "choices": [{"index": 0, "text": " b", "logprobs": null, '
        '"finish_reason": "length"}], "model": "m"}'
    ),
    "[DONE]",
]


def test_sglang_tokens_are_the_growth_of_its_count() -> None:
    made = read(Endpoint.SGLANG, SGLANG)

    assert made.error is None
    assert made.chunks == [(2.0, 1), (3.0, 2), (4.0, 1)]
    assert (made.prompt_tokens, made.output_tokens, made.finish_reason) == (5, 4, "length")


def test_sglang_with_new_text_only_has_the_same_output() -> None:
    whole = read(Endpoint.SGLANG, SGLANG)
    parts = [sglang(" a", 1), sglang(" b c", 3), sglang(" d", 4, {"type": "length", "length": 4}), "[DONE]"]

    assert read(Endpoint.SGLANG, parts).output_hash == whole.output_hash
    assert read(Endpoint.SGLANG, parts).chunks == whole.chunks


def test_sglang_takes_ids_and_text_and_nests_its_sampling() -> None:
    ask = Ask("m", 9, ignore_eos=True, sampling=Sampling(temperature=0.7, top_p=0.9))

    assert body(Endpoint.SGLANG, [1, 2], ask) == {
        "input_ids": [1, 2],
        "sampling_params": {"temperature": 0.7, "max_new_tokens": 9, "top_p": 0.9, "ignore_eos": True},
        "stream": True,
    }
    assert body(Endpoint.SGLANG, "hi", ask)["text"] == "hi"


def test_tgi_ends_with_its_generated_text() -> None:
    made = read(Endpoint.TGI, TGI)

    assert made.error is None
    assert made.chunks == [(2.0, 1), (3.0, 1), (4.0, 1)]
    assert (made.prompt_tokens, made.output_tokens, made.finish_reason) == (5, 3, "eos_token")


def test_tgi_behind_a_gateway_that_names_its_events_is_the_same() -> None:
    made = read_wire(Endpoint.TGI, [f"event:response\ndata:{event}\n\n" for event in TGI])

    assert made.output_hash == read(Endpoint.TGI, TGI).output_hash
    assert made.error is None


def test_tgi_is_asked_greedily_without_a_temperature() -> None:
    assert body(Endpoint.TGI, "hi", Ask("m", 9, ignore_eos=True)) == {
        "inputs": "hi",
        "parameters": {"max_new_tokens": 9, "details": True, "do_sample": False, "ignore_eos_token": True},
    }
    sampled = body(Endpoint.TGI, "hi", Ask("m", 9, sampling=Sampling(temperature=0.5)))["parameters"]
    assert isinstance(sampled, dict)
    assert (sampled["do_sample"], sampled["temperature"]) == (True, 0.5)


def test_tensorrt_llm_has_one_token_an_event_and_no_usage() -> None:
    made = read(Endpoint.TRTLLM, TRTLLM)

    assert made.error is None
    assert made.chunks == [(2.0, 1), (3.0, 1), (4.0, 1)]
    assert (made.output_tokens, made.prompt_tokens) == (None, None)


def test_tensorrt_llm_is_whole_only_if_its_body_is() -> None:
    cut = Failure(kind="truncated", message="the connection ended")

    assert read(Endpoint.TRTLLM, TRTLLM[:2], cut).error == cut


def test_tensorrt_llm_is_told_a_shortest_length() -> None:
    assert body(Endpoint.TRTLLM, "hi", Ask("m", 9, ignore_eos=True)) == {
        "text_input": "hi",
        "max_tokens": 9,
        "temperature": 0.0,
        "stream": True,
        "accumulate_tokens": False,
        "min_length": 9,
    }


def test_deepspeed_mii_streams_openai_chunks_without_usage() -> None:
    made = read(Endpoint.DEEPSPEED_MII, MII)

    assert made.error is None
    assert made.chunks == [(2.0, 1), (3.0, 1)]
    assert (made.output_tokens, made.finish_reason) == (None, "length")


def test_deepspeed_mii_is_made_greedy_and_told_a_shortest_length() -> None:
    assert body(Endpoint.DEEPSPEED_MII, "hi", Ask("m", 9, ignore_eos=True)) == {
        "model": "m",
        "prompt": "hi",
        "max_tokens": 9,
        "stream": True,
        "top_k": 1,
        "min_tokens": 9,
    }


@pytest.mark.parametrize(
    ("endpoint", "events"), [(Endpoint.SGLANG, SGLANG), (Endpoint.TGI, TGI), (Endpoint.DEEPSPEED_MII, MII)]
)
def test_a_stream_without_its_last_event_is_truncated(endpoint: Endpoint, events: list[str]) -> None:
    error = read(endpoint, events[:-1]).error

    assert error is not None
    assert error.kind == "truncated"


@pytest.mark.parametrize(
    ("endpoint", "event"),
    [
        (Endpoint.SGLANG, '{"error": {"message": "out of memory"}}'),
        (Endpoint.TGI, '{"error": "out of memory", "error_type": "generation"}'),
        (Endpoint.TRTLLM, '{"error": "out of memory"}'),
        (Endpoint.DEEPSPEED_MII, '{"error": {"message": "out of memory"}}'),
    ],
)
def test_an_error_in_the_stream_is_a_failure(endpoint: Endpoint, event: str) -> None:
    assert read(endpoint, [event]).error == Failure(kind="stream_error", message="out of memory")


@pytest.mark.parametrize("endpoint", [Endpoint.SGLANG, Endpoint.TGI, Endpoint.TRTLLM])
@pytest.mark.parametrize("data", ["", "{", "[]", "{}", '{"text": 7, "token": 7, "text_output": 7}'])
def test_what_is_no_event_of_the_protocol_is_refused(endpoint: Endpoint, data: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        BACKENDS[endpoint].reader().read(data)


@pytest.mark.parametrize("endpoint", [Endpoint.TGI, Endpoint.TRTLLM, Endpoint.DEEPSPEED_MII])
def test_what_takes_text_refuses_token_ids_with_a_remedy(endpoint: Endpoint) -> None:
    with pytest.raises(UnsuitableError, match="dataset text"):
        BACKENDS[endpoint].body([1, 2], Ask("m", 9))
