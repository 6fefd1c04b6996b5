"""Which requests may continue after another engine's token: each exclusion depends on one field alone."""

import json
from typing import Any

import pytest
from msgspec import Raw

from pd_proxy.protocol import exclusions
from pd_proxy.protocol.body import READABLE_BYTES
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import limit_of, may_hand_off, may_migrate, minimum_of, stops_of
from pd_proxy.protocol.generation import Generation, parse

TEXT = {"prompt": "Once upon a time"}
MESSAGES = {"messages": [{"role": "user", "content": "Hello"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
EXCLUDED: list[tuple[str, dict[str, Any], str]] = [
    ("structured_output", {"response_format": {"type": "json_object"}}, "both"),
    ("structured_output", {"structured_outputs": {"regex": "a+"}}, "both"),
    ("penalties", {"presence_penalty": 0.1}, "both"),
    ("penalties", {"frequency_penalty": -1}, "both"),
    ("penalties", {"repetition_detection": {"max_pattern_size": 3}}, "both"),
    ("bad_words", {"bad_words": ["no"]}, "both"),
    ("several_sequences", {"n": 2, "temperature": 1}, "both"),
    ("beam_search", {"use_beam_search": True}, "both"),
    ("echo", {"echo": True}, "both"),
    ("echo", {"prompt_logprobs": 0}, "both"),
    ("logits_processors", {"logits_processors": ["a.b"]}, "both"),
    ("logits_processors", {"vllm_xargs": {"a": 1}}, "both"),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "chat"),
    ("reasoning", {"thinking_token_budget": 5}, "both"),
    ("reasoning", {"include_reasoning": False}, "chat"),
    ("truncation", {"truncate_prompt_tokens": 5}, "both"),
    ("structured_output", {"structural_tag": "{}"}, "both"),
    ("logits_processors", {"watermarking": True}, "both"),
    ("suffix", {"suffix": "end"}, "both"),
    ("prompt_embeds", {"prompt_embeds": "AAAA"}, "both"),
    ("tools", {"functions": [{"name": "f"}]}, "chat"),
    ("special_tokens", {"detokenize": False}, "both"),
    ("stream_interval", {"stream_interval": 2}, "both"),
    ("offsets", {"return_token_offsets": True}, "both"),
    ("special_tokens", {"skip_special_tokens": False}, "both"),
    ("special_tokens", {"spaces_between_special_tokens": False}, "both"),
    ("seed", {"seed": 1, "temperature": 0.5}, "both"),
    ("seed", {"seed": 1}, "both"),
    ("max_tokens", {"max_tokens": 0}, "both"),
    ("min_tokens", {"min_tokens": 5.0}, "both"),
    ("min_tokens", {"min_tokens": "5"}, "both"),
    ("min_tokens", {"min_tokens": True}, "both"),
    ("stop_string", {"stop": ["x" * (READABLE_BYTES + 1)]}, "both"),
    ("media", {"messages": [{"role": "user", "content": [IMAGE]}]}, "chat"),
]


def generation(path: Endpoint, **fields: Any) -> Generation:
    base = TEXT if path is Endpoint.COMPLETIONS else MESSAGES
    return parse(path, json.dumps({**base, **fields}).encode())


def test_every_excluded_field_is_tried() -> None:
    assert exclusions._FIELDS.keys() <= {name for _, fields, _ in EXCLUDED for name in fields}


@pytest.mark.parametrize(
    ("own", "reason", "neutral"),
    [
        ({"own_fields": ["presence_penalty"]}, "penalties", {"presence_penalty": 0}),
        ({"own_fields": ["frequency_penalty"]}, "penalties", {"frequency_penalty": 0}),
        ({"own_fields": ["skip_special_tokens"]}, "special_tokens", {"skip_special_tokens": True}),
        ({"own_fields": ["logits_processors"]}, "logits_processors", None),
        ({"own_limit": 19}, "max_tokens", {"max_tokens": 19}),
    ],
)
@pytest.mark.parametrize("path", [Endpoint.COMPLETIONS, Endpoint.CHAT])
def test_what_an_engine_does_unasked_counts_as_if_it_were_asked(
    path: Endpoint, own: dict[str, Any], reason: str, neutral: dict[str, Any] | None
) -> None:
    plain = generation(path, max_tokens=20, temperature=0)
    assert may_hand_off(plain, **own) == may_migrate(plain, **own) == reason
    if neutral is not None:
        asked = generation(path, **{"max_tokens": 20, "temperature": 0, **neutral})
        assert may_hand_off(asked, **own) is may_migrate(asked, **own) is None
    if path is Endpoint.CHAT and "own_limit" in own:
        assert may_hand_off(generation(path), **own) == reason, (
            "the engine's own limit holds where the client sets none"
        )


@pytest.mark.parametrize(("reason", "fields", "where"), EXCLUDED, ids=lambda value: str(value)[:40])
def test_each_exclusion_has_a_name_and_falls_with_its_field(reason: str, fields: dict[str, Any], where: str) -> None:
    for path in (Endpoint.CHAT,) if where == "chat" else (Endpoint.COMPLETIONS, Endpoint.CHAT):
        assert may_hand_off(generation(path, **fields)) == reason
        assert may_migrate(generation(path, **fields)) == reason
        assert may_hand_off(generation(path)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"seed": 1, "temperature": 0},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.1, "bad_words": [], "n": 1},
        {"response_format": {"type": "text"}, "tools": [], "vllm_xargs": {}, "use_beam_search": False},
        {"response_format": None, "seed": None, "tools": None, "thinking_token_budget": None},
        {"logit_bias": {"5": 1}, "allowed_token_ids": [1, 2], "stop": ["x"], "stop_token_ids": [3], "min_tokens": 2},
        {"logprobs": 1, "max_tokens": 1, "ignore_eos": True, "user": "x", "priority": 1},
    ],
)
def test_what_draws_each_token_alone_or_is_switched_off_excludes_nothing(fields: dict[str, Any]) -> None:
    for path in (Endpoint.COMPLETIONS, Endpoint.CHAT):
        assert may_hand_off(generation(path, **fields)) is None


def test_text_in_parts_is_text() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": 'an "image_url"'}]
    assert may_hand_off(generation(Endpoint.CHAT, messages=[{"role": "user", "content": content}])) is None


def test_other_endpoints_are_no_question() -> None:
    assert may_hand_off(parse(Endpoint.RESPONSES, b'{"input": "x"}')) == "endpoint"


def test_a_stream_may_migrate_only_if_its_tokens_are_bound_to_come() -> None:
    for path in (Endpoint.COMPLETIONS, Endpoint.CHAT):
        assert may_migrate(generation(path, temperature=0)) is None
        assert may_migrate(generation(path, temperature=0, seed=5)) is None
        assert may_migrate(generation(path, temperature=0.1)) == "sampling"
        assert may_migrate(generation(path)) == "sampling"
        assert may_migrate(generation(path, temperature=0, logprobs=1)) == "logprobs"


def test_a_seed_binds_tokens_to_come_where_draws_depend_on_the_position_alone() -> None:
    for path in (Endpoint.COMPLETIONS, Endpoint.CHAT):
        assert may_migrate(generation(path, seed=5, temperature=0.5), by_position=True) is None
        assert may_migrate(generation(path, seed=0), by_position=True) is None
        assert may_migrate(generation(path, seed=5)) == "seed"
        assert may_migrate(generation(path, seed=5, logprobs=1), by_position=True) == "logprobs"
        assert may_migrate(generation(path, seed=5, presence_penalty=1), by_position=True) == "penalties"
        assert may_migrate(generation(path, seed=-1, temperature=0.5), by_position=True) == "sampling"
        assert may_migrate(generation(path, temperature=0.5), by_position=True) == "sampling"
        assert may_hand_off(generation(path, seed=-1, temperature=0.5)) is None
        assert may_hand_off(generation(path, seed=5, temperature=0.5), by_position=True) is None
        assert (
            may_hand_off(generation(path, seed=5, temperature=0.5, presence_penalty=1), by_position=True) == "penalties"
        )


def test_limits_as_the_engine_reads_them() -> None:
    assert limit_of(generation(Endpoint.COMPLETIONS)) == 16
    assert limit_of(generation(Endpoint.CHAT)) is None
    assert limit_of(generation(Endpoint.CHAT, max_tokens=5, max_completion_tokens=7)) == 7
    assert minimum_of(generation(Endpoint.CHAT, min_tokens=3)) == 3
    assert stops_of(generation(Endpoint.CHAT, stop="a")) == ("a",)
    assert stops_of(generation(Endpoint.CHAT, stop=["a", "b"])) == ("a", "b")


@pytest.mark.parametrize("value", [b"1e400", b"[" * 20_000 + b"]" * 20_000], ids=["too large", "too deep"])
@pytest.mark.parametrize("endpoint", [Endpoint.COMPLETIONS, Endpoint.CHAT])
def test_a_value_that_only_an_engine_can_judge_stays_with_one_engine(endpoint: Endpoint, value: bytes) -> None:
    names = {
        "max_tokens",
        "min_tokens",
        "temperature",
        "logprobs",
        "response_format",
        "vllm_xargs",
        "tools",
        "stop",
        "seed",
    }
    usual = {"prompt": Raw(b'"a"'), "messages": Raw(b'[{"role":"user","content":"a"}]')}
    for name in names:
        generation = Generation(endpoint, {**usual, name: Raw(value)})
        minimum_of(generation)
        stops_of(generation)
        for found in (may_hand_off(generation), may_migrate(generation)):
            assert found is not None or name in ("min_tokens", "stop", "temperature", "logprobs")
    deep = Generation(Endpoint.CHAT, {"messages": Raw(b'[{"type":"a","content":' + value + b"}]")})
    assert may_hand_off(deep) is not None
