"""Messages survive the wire in any pieces, anything else is refused, and the `pd` map says what docs/connector.md says."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector import settings as connector_settings
from pd_connector.settings import Settings, SettingsError
from pd_connector.wire import params
from pd_connector.wire.frames import LENGTH, Frames, frame
from pd_connector.wire.messages import (
    MAX_MESSAGE_BYTES,
    Credit,
    Hello,
    Join,
    Joined,
    Part,
    Ping,
    ProtocolError,
    Soon,
    Token,
    decode,
)

MESSAGES: list[Any] = [
    Hello(purpose="push", boot="b", address="1.2.3.4:5", schema={"layers": "a"}, transports=["vmm", "tcp"]),
    Join(id=bytes(range(128))),
    Joined(),
    Credit(pages=[1, 2, 300]),
    Part(key="k.x", first=0, count=3, total=9, pages=[4, 5], size=1 << 40),
    Soon(key="k.x"),
    Token(key="k.x", token=151_000),
    Ping(),
]


@given(cuts=st.lists(st.integers(1, 40), max_size=60))
def test_messages_arrive_in_any_pieces(cuts: list[int]) -> None:
    data = b"".join(frame(message) for message in MESSAGES)
    frames, found, at = Frames(), [], 0
    for size in [*cuts, len(data)]:
        found += list(frames.feed(data[at : at + size]))
        at += size

    assert found == MESSAGES
    assert frames.rest == b""


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_lengths_that_no_message_has_are_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        list(Frames().feed(LENGTH.pack(length)))


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_worse(noise: bytes) -> None:
    try:
        list(Frames().feed(noise))
        decode(noise)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "wrong",
    [{"type": "nothing"}, {"type": "credit"}, {"type": "credit", "pages": "x"}, {"type": "hello", "purpose": "x"}, [1]],
)
def test_messages_that_lack_something_are_refused(wrong: Any) -> None:
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(wrong))


def test_later_versions_may_add_fields() -> None:
    assert decode(msgspec.msgpack.encode({"type": "credit", "pages": [1], "new": 1})) == Credit(pages=[1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({}, None),
        ({"do_remote_decode": True}, None),
        ({"pd": None}, None),
        ({"pd": {"key": "k", "to": ["h:1"]}}, params.Prefill("k", "h:1")),
        ({"pd": {"key": "k", "to": "h:1"}}, params.Prefill("k", "h:1")),
        ({"pd": {"key": "k", "to": []}}, params.Prefill("k")),
        ({"pd": {"key": "k"}}, params.Prefill("k")),
        ({"pd": {"key": "k", "to": ["h:1"], "first": "kv"}}, params.Prefill("k", "h:1", kv_first=True)),
        ({"pd": {"key": "k", "from": "h:1", "more": 1}}, params.Decode("k", "h:1")),
        ({"pd": {"key": "k", "from": "h:1", "tokens": 3}}, params.Decode("k", "h:1", 3)),
        ({"pd": {"key": "k", "from": "[::1]:9", "token": "follows"}}, params.Decode("k", "[::1]:9", follows=True)),
    ],
)
def test_the_pd_map_says_what_it_says(given: Any, expected: Any) -> None:
    assert params.parse(given) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        7,
        [],
        {},
        {"key": ""},
        {"key": "x" * 201},
        {"key": 5},
        {"key": "k", "to": "nowhere"},
        {"key": "k", "to": ["h:0"]},
        {"key": "k", "to": [7]},
        {"key": "k", "to": ["h:1"], "first": "token"},
        {"key": "k", "from": "h:70000"},
        {"key": "k", "from": "h"},
        {"key": "k", "from": "h:1", "tokens": 0},
        {"key": "k", "from": "h:1", "tokens": "many"},
        {"key": "k", "from": "h:1", "token": 17},
        {"key": "k", "from": "h:1", "token": "later"},
    ],
)
def test_a_pd_map_that_cannot_be_used_says_why(wrong: Any) -> None:
    with pytest.raises(params.ParamsError) as caught:
        params.parse({"pd": wrong})
    assert str(caught.value)


def test_every_rank_listens_at_a_port_of_its_own() -> None:
    assert params.of_rank("10.0.0.1:21001", 3) == "10.0.0.1:21004"
    assert params.split("[::1]:7") == ("::1", 7)


def test_a_key_belongs_to_one_prompt() -> None:
    key = params.kv_key("k", [1, 2, 3])

    assert key == params.kv_key("k", (1, 2, 3))
    others = [
        params.kv_key("k", [1, 2]),
        params.kv_key("k", [1, 2, 4]),
        params.kv_key("k", [1, 2, 3], ["image"]),
        params.kv_key("l", [1, 2, 3]),
    ]
    assert len({key, *others}) == 5
    assert params.kv_key("k", [1], ["ab", "c"]) != params.kv_key("k", [1], ["a", "bc"])


def test_the_answer_carries_the_key() -> None:
    assert params.answer("k", blocks=2, tokens=20) == {"pd": {"key": "k", "blocks": 2, "tokens": 20}}


def test_settings_are_read_from_vllms_extra_config() -> None:
    found = connector_settings.load({"transports": ["tcp"], "load_timeout_s": 3, "debug": {"zero": True}})

    assert found.transports == ("tcp",)
    assert found.load_timeout_s == 3.0
    assert found.debug.zero
    assert connector_settings.load({}) == Settings()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"landing_byte": 1}, "landing_byte"),
        ({"landing_bytes": 0}, "landing_bytes"),
        ({"transports": []}, "transports"),
        ({"transports": ["rdma"]}, "rdma"),
        ({"nccl_blocks": 0}, "nccl_blocks"),
        ({"load_timeout_s": -1}, "load_timeout_s"),
        ({"ping_s": 3}, "dead_after_s"),
        ({"debug": {"zeros": True}}, "zeros"),
    ],
)
def test_settings_that_do_not_fit_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        connector_settings.load(wrong)
