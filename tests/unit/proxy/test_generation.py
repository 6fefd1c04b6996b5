"""Reading a client's body."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.errors import BadRequestError, NotStoredError
from pd_proxy.protocol.body import encode
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import Generation, parse, prefix


def text(**fields: Any) -> Generation:
    return parse(Endpoint.COMPLETIONS, json.dumps({"prompt": "x"} | fields).encode())


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KNOWN: set[str] = {
    "prompt", "messages", "model", "stream", "n", "echo", "suffix", "prompt_logprobs", "prompt_embeds",
    "use_beam_search", "kv_transfer_params", "ec_transfer_params", "request_id", "truncate_prompt_tokens", "truncation",
}  # fmt: skip
OTHERS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text().filter(lambda name: name not in KNOWN), JSON, max_size=4
)


@given(OTHERS)
def test_what_the_proxy_does_not_route_by_goes_on_unchanged(fields: dict[str, Any]) -> None:
    assert json.loads(encode(text(**fields).fields)) == {"prompt": "x", "stream": False} | fields


def test_numbers_are_not_reformatted() -> None:
    body = b'{"prompt":[1,2], "temperature": 1.10, "seed":12345678901234567890123, "top_p":1E-3}'
    encoded = encode(parse(Endpoint.COMPLETIONS, body).fields)
    for piece in (b"1.10", b"12345678901234567890123", b"1E-3", b"[1,2]"):
        assert piece in encoded


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("x", 1),
        ("[1", 1),
        ([], 1),
        ([1, 2, 3], 1),
        (["a"], 1),
        (["a", "b"], 2),
        ([[1], [2, 3], [4]], 3),
        ('["a","b"]', 1),
    ],
)
def test_sequences_are_prompts_times_n(prompt: Any, count: int) -> None:
    assert text(prompt=prompt).sequences == count
    assert text(prompt=prompt, n=3).sequences == 3 * count
    assert text(prompt=prompt, n=True).sequences == count


@pytest.mark.parametrize(
    ("value", "stream"),
    [(value, True) for value in (True, "true", 1, "1", "Yes", "on", "t", 1.0)]
    + [(value, False) for value in (None, 0, 0.0, "no", "OFF")],
)
def test_stream_is_read_as_vllm_reads_it_and_passed_on_plainly(value: Any, stream: bool) -> None:
    generation = text(stream=value)
    assert generation.stream is stream
    assert bytes(generation.fields["stream"]) == json.dumps(stream).encode()


def test_the_last_of_two_equal_keys_counts_for_us_and_for_the_engine() -> None:
    generation = parse(Endpoint.COMPLETIONS, b'{"prompt":"x","stream":true,"stream":false,"n":1,"n":2}')
    assert (generation.stream, generation.sequences) == (False, 2)
    assert json.loads(encode(generation.fields)) == {"prompt": "x", "stream": False, "n": 2}


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True},
        {"echo": "1"},
        {"prompt_logprobs": 0},
        {"use_beam_search": True},
        {"use_beam_search": "yes"},
        {"suffix": "end"},
        {"prompt_embeds": "abc", "prompt": None},
        {"truncate_prompt_tokens": -1},
    ],
)
def test_what_cannot_be_shared_says_so(fields: dict[str, Any]) -> None:
    assert text(**fields).combined_only


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"echo": False},
        {"prompt_logprobs": None},
        {"best_of": 2},  # vLLM has no such parameter any more, and ignores it
        {"best_of": "x"},
        {"suffix": None},
        {"suffix": ""},
        {"n": 4},
        {"logprobs": 2},
        {"truncate_prompt_tokens": 100},
        {"truncate_prompt_tokens": "x"},  # the engine refuses it
        {"truncation": "auto"},  # of responses alone; elsewhere vLLM ignores it
    ],
)
def test_what_can_be_shared_is_not_kept_from_it(fields: dict[str, Any]) -> None:
    assert text(**fields).combined_only is None


def response(**fields: Any) -> Generation:
    return parse(Endpoint.RESPONSES, json.dumps({"input": "x"} | fields).encode())


@pytest.mark.parametrize("fields", [{"background": True}, {"background": "true"}, {"previous_response_id": "resp_1"}])
def test_a_response_that_needs_a_stored_one_is_refused_with_the_reason(fields: dict[str, Any]) -> None:
    with pytest.raises(NotStoredError) as caught:
        response(**fields)
    assert (caught.value.status, caught.value.param) == (400, next(iter(fields)))
    assert "responses are not stored here" in caught.value.message


@pytest.mark.parametrize("fields", [{}, {"store": True}, {"background": False}, {"previous_response_id": None}])
def test_a_response_that_needs_none_is_not_stored_either(fields: dict[str, Any]) -> None:
    assert bytes(response(**fields).fields["store"]) == b"false"


@pytest.mark.parametrize("kind", ["web_search_preview", "code_interpreter", "mcp", "container"])
def test_tools_that_the_engine_runs_keep_a_response_from_being_shared(kind: str) -> None:
    reason = response(tools=[{"type": "function", "name": "f"}, {"type": kind}]).combined_only
    assert reason is not None
    assert f"`{kind}`" in reason
    assert "function" not in reason


def test_a_prompt_cut_to_what_fits_keeps_a_response_from_being_shared() -> None:
    assert response(truncation="auto").combined_only


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}]},
        {"tools": [], "truncation": "disabled"},
        {"tools": "nonsense"},
        {"n": 3, "echo": True},
    ],
)
def test_other_responses_are_shared_as_one_sequence(fields: dict[str, Any]) -> None:
    generation = response(**fields)
    assert (generation.combined_only, generation.sequences) == (None, 1)


def test_a_response_is_told_from_others_by_its_instructions_first() -> None:
    assert prefix(response(instructions="be brief"), 11) == b'"be brief""'


def test_an_empty_model_is_none() -> None:
    assert text(model="").model is None
    assert text(model="m").model == "m"


@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_raise_the_one_error(body: bytes) -> None:
    for endpoint in Endpoint:
        with contextlib.suppress(BadRequestError):
            parse(endpoint, body)


def test_deep_nesting_is_a_bad_request() -> None:
    with pytest.raises(BadRequestError):
        parse(Endpoint.COMPLETIONS, b'{"prompt":' + b"[" * 100_000)
