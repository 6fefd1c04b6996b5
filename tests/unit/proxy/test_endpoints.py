"""Endpoints other than completions, chat and responses: how their bodies are read, and the bodies for both engines."""

import json
from typing import Any

import pytest
from msgspec import Raw

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import BadRequestError
from pd_proxy.kv.transfer import one_token, plan, stand_in
from pd_proxy.protocol.body import encode
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import Generation, parse, prefix
from pd_proxy.protocol.usage import Cached, corrected, said

USER = {"role": "user", "content": "hi"}
BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.COMPLETIONS: {"prompt": "x", "max_tokens": 9},
    Endpoint.CHAT: {"messages": [USER], "max_tokens": 9},
    Endpoint.BATCH: {"messages": [[USER], [USER], [USER]], "max_tokens": 9},
    Endpoint.RESPONSES: {"input": "x", "max_output_tokens": 9},
    Endpoint.MESSAGES: {"messages": [USER], "max_tokens": 9, "model": "m"},
    Endpoint.GENERATE: {
        "token_ids": [1, 2, 3],
        "sampling_params": {"max_tokens": 9, "min_tokens": 3, "temperature": 0},
    },
}
OTHERS = (Endpoint.BATCH, Endpoint.MESSAGES, Endpoint.GENERATE)


def read(endpoint: Endpoint, **fields: Any) -> Generation:
    return parse(endpoint, json.dumps(BODIES[endpoint] | fields).encode())


def body(fields: dict[str, Raw]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(fields))
    return found


@pytest.mark.parametrize("endpoint", OTHERS)
def test_what_the_client_wrote_goes_on_unchanged(endpoint: Endpoint) -> None:
    generation = read(endpoint, other={"a": 1})

    assert body(dict(generation.fields)) == BODIES[endpoint] | {"other": {"a": 1}, "stream": False}
    assert generation.combined_only is None


@pytest.mark.parametrize("endpoint", OTHERS)
def test_without_a_prompt_nobody_is_asked(endpoint: Endpoint) -> None:
    name = next(name for name in ("messages", "token_ids") if name in BODIES[endpoint])
    with pytest.raises(BadRequestError) as caught:
        read(endpoint, **{name: None})
    assert caught.value.param == name


def test_a_batch_is_as_many_sequences_as_conversations() -> None:
    assert read(Endpoint.BATCH).sequences == 3
    assert read(Endpoint.BATCH, messages=[[USER]]).sequences == 1
    for wrong in ("x", {"a": 1}):
        with pytest.raises(BadRequestError, match="a list of conversations"):
            read(Endpoint.BATCH, messages=wrong)


def test_a_batch_is_no_stream() -> None:
    with pytest.raises(BadRequestError, match="do not support streaming"):
        read(Endpoint.BATCH, stream=True)


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "request_id"])
@pytest.mark.parametrize("endpoint", Endpoint)
def test_a_client_cannot_choose_where_kv_goes(endpoint: Endpoint, name: str) -> None:
    kept = {"mine": 1}
    generation = read(endpoint, vllm_xargs={name: {"do_remote_prefill": True}, **kept}, **{name: "x"})

    assert body(dict(generation.fields)) == BODIES[endpoint] | {
        "stream": False,
        "vllm_xargs": kept,
        **({"store": False} if endpoint is Endpoint.RESPONSES else {}),
    }


def test_a_client_cannot_choose_it_with_an_escaped_name() -> None:
    text = b'{"prompt":"x","vllm_xargs":{"kv_tr\\u0061nsfer_params":{"a":1},"b":2},"kv\\u005ftransfer_params":{}}'

    assert body(dict(parse(Endpoint.COMPLETIONS, text).fields)) == {
        "prompt": "x",
        "vllm_xargs": {"b": 2},
        "stream": False,
    }


def test_a_client_cannot_choose_it_among_the_sampling_parameters() -> None:
    extra = {"kv_transfer_params": {"do_remote_prefill": True}, "mine": 1}
    found = body(dict(read(Endpoint.GENERATE, sampling_params={"n": 2, "extra_args": extra}).fields))

    assert found["sampling_params"] == {"n": 2, "extra_args": {"mine": 1}}


@pytest.mark.parametrize("wrong", ["x", [1], 7, True])
def test_what_is_no_object_is_the_engines_to_judge(wrong: Any) -> None:
    assert body(dict(read(Endpoint.CHAT, vllm_xargs=wrong).fields))["vllm_xargs"] == wrong


def test_sampling_parameters_are_an_object() -> None:
    for wrong in (None, "x", [1]):
        with pytest.raises(BadRequestError, match="sampling_params"):
            read(Endpoint.GENERATE, sampling_params=wrong)


@pytest.mark.parametrize(
    "fields",
    [{"sampling_params": {"prompt_logprobs": 1}}, {"features": {"mm_hashes": {}}}],
    ids=str,
)
def test_what_one_engine_alone_can_answer(fields: dict[str, Any]) -> None:
    assert read(Endpoint.GENERATE, **fields).combined_only


def test_copies_count() -> None:
    assert read(Endpoint.GENERATE, sampling_params={"n": 3}).sequences == 3


# --- legs ----------------------------------------------------------------------------------------------------------------------


def test_prefill_writes_one_token_wherever_the_limit_stands() -> None:
    assert body(one_token(Endpoint.GENERATE, read(Endpoint.GENERATE, stream=True).fields)) == {
        "token_ids": [1, 2, 3],
        "sampling_params": {"max_tokens": 1, "temperature": 0},
        "stream": False,
    }
    assert body(one_token(Endpoint.MESSAGES, read(Endpoint.MESSAGES, stream=True).fields))["max_tokens"] == 1
    batch = body(one_token(Endpoint.BATCH, read(Endpoint.BATCH, max_completion_tokens=9).fields))
    assert (batch["max_tokens"], batch["max_completion_tokens"], len(batch["messages"])) == (1, 1, 3)


@pytest.mark.parametrize(
    ("thinking", "kept"),
    [
        ({"type": "enabled", "budget_tokens": 4}, False),
        ({"type": "disabled"}, True),
        ({"type": "adaptive"}, True),
        ("nonsense", True),
    ],
)
def test_a_budget_of_thinking_does_not_keep_prefill_from_one_token(thinking: Any, kept: bool) -> None:
    generation = read(Endpoint.MESSAGES, thinking=thinking)

    assert ("thinking" in one_token(Endpoint.MESSAGES, generation.fields)) is kept
    assert "thinking" in generation.fields


@pytest.mark.parametrize("endpoint", Endpoint)
def test_kv_that_replaces_lost_kv_has_as_many_sequences(endpoint: Endpoint) -> None:
    generation = read(endpoint)

    again = parse(endpoint, encode(stand_in(endpoint, generation.fields)))

    assert again.sequences == generation.sequences
    assert prefix(again, 512) != prefix(generation, 512)


@pytest.mark.parametrize("endpoint", OTHERS)
@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.EXAMPLE, Connector.NIXL])
def test_both_legs_have_one_id_that_the_engine_reads(endpoint: Endpoint, connector: Connector) -> None:
    def engine(role: Role, number: int) -> Instance:
        address = f"10.0.0.{number}:1"
        return Instance(
            name=role, role=role, http_address=address, zmq_address=address, connector=connector, incarnation=number
        )

    pair = Pair(engine(Role.PREFILL, 1), engine(Role.DECODE, 2))
    planned = plan(pair, endpoint, read(endpoint).fields, {})
    handover = planned.receive(b'{"kv_transfer_params": {"remote": 1}}')

    assert planned.prefill.headers["X-Request-Id"] == handover.decode().headers["X-Request-Id"] == planned.engine_id
    sent = json.loads(handover.decode().body)
    expected = {"kv_transfer_params": {"remote": 1}} if connector is Connector.NIXL else {}
    assert sent == BODIES[endpoint] | {"stream": False} | expected


# --- usage ---------------------------------------------------------------------------------------------------------------------


def usage(details: Any, **rest: Any) -> bytes:
    return json.dumps({"id": "x", "usage": {"prompt_tokens": 1000, "prompt_tokens_details": details, **rest}}).encode()


def after(endpoint: Endpoint, prefill: bytes, decode: bytes) -> Any:
    cached = said(endpoint, Raw(json.dumps(json.loads(prefill)["usage"]).encode()))
    assert cached is not None
    fields = corrected(
        endpoint, {name: Raw(json.dumps(value).encode()) for name, value in json.loads(decode).items()}, cached
    )
    return None if fields is None else body(fields)


def test_cached_tokens_are_prefills() -> None:
    found = after(Endpoint.CHAT, usage({"cached_tokens": 16}), usage({"cached_tokens": 999}))

    assert found["usage"] == {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 16}}


def test_without_cached_tokens_at_prefill_the_answer_has_none() -> None:
    found = after(Endpoint.CHAT, usage(None), usage({"cached_tokens": 999}))

    assert found["usage"]["prompt_tokens_details"] is None


def test_cached_tokens_of_a_response_are_in_another_field() -> None:
    prefill = {"usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 0}}}
    decode = {"usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 8}}}
    event = {"type": "response.completed", "response": {"id": "r", **decode}}

    for given in (decode, event):
        found = after(Endpoint.RESPONSES, json.dumps(prefill).encode(), json.dumps(given).encode())
        inner = found.get("response", found)
        assert inner["usage"]["input_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("wrapped", [False, True])
def test_input_tokens_of_a_message_are_those_that_were_not_cached(wrapped: bool) -> None:
    prefill = {"usage": {"input_tokens": 84, "cache_read_input_tokens": 16, "output_tokens": 1}}
    decode: dict[str, Any] = {"usage": {"input_tokens": 1, "cache_read_input_tokens": 99, "output_tokens": 5}}
    given = {"type": "message_start", "message": decode} if wrapped else decode

    found = after(Endpoint.MESSAGES, json.dumps(prefill).encode(), json.dumps(given).encode())

    inner = found["message"] if wrapped else found
    assert inner["usage"] == {"input_tokens": 84, "cache_read_input_tokens": 16, "output_tokens": 5}
    assert after(Endpoint.MESSAGES, json.dumps({"usage": {"input_tokens": 100}}).encode(), json.dumps(decode).encode())[
        "usage"
    ] == {"input_tokens": 100, "cache_read_input_tokens": 0, "output_tokens": 5}


def test_an_answer_that_says_nothing_of_a_cache_stays_as_it_is() -> None:
    assert after(Endpoint.CHAT, usage(None), usage(None)) is None
    text = json.dumps({"choices": [{"text": '"cached_tokens": 5'}], "usage": {"prompt_tokens": 1}}).encode()
    assert after(Endpoint.CHAT, usage(None), text) is None


@pytest.mark.parametrize("told", [None, b"", b"[]", b"null", b"7", b"\xff", b'{"prompt_tokens_details": 7}'])
def test_a_prefill_that_says_nothing_changes_nothing(told: bytes | None) -> None:
    assert said(Endpoint.CHAT, None if told is None else Raw(told)) is None


# --- bytes ---------------------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    assert parse(Endpoint.COMPLETIONS, b'\xef\xbb\xbf{"prompt":"x"}').model is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"prompt":"\xff"}',
        b'{"prompt":"x","model":"\xc3("}',
        b'{"prompt":"x","other":["\xed\xa0\x80"]}',
        b'{"prompt":"x","\xfe":1}',
    ],
)
def test_what_is_no_utf_8_is_no_json(text: bytes) -> None:
    with pytest.raises(BadRequestError, match="not valid JSON"):
        parse(Endpoint.COMPLETIONS, text)


def test_a_dangling_reference_is_only_text() -> None:
    assert corrected(Endpoint.CHAT, {"usage": Raw(b'{"a":1}')}, Cached(Raw(b"null"), 0)) is None
