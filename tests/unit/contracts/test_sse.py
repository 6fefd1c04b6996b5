import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.sse import DONE, Comment, Decoder, Event, encode_comment, encode_event

LINE_ENDS = ["\n", "\r\n", "\r"]

STREAM = "event: note\ndata: first\ndata:second\n\n: pd-timing {}\n\nid: 7\ndata: é – 漢字\n\ndata\n\ndata: [DONE]\n\n"
ITEMS = [
    Event("first\nsecond", "note"),
    Comment("pd-timing {}"),
    Event("é – 漢字"),
    Event(""),
    Event(DONE),
]


def decode(pieces: Iterable[bytes]) -> list[Event | Comment]:
    decoder = Decoder()
    items = [item for piece in pieces for item in decoder.feed(piece)]
    assert not decoder.incomplete
    return items


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_all_three_line_ends_give_the_same_items(line_end: str) -> None:
    assert decode([STREAM.replace("\n", line_end).encode()]) == ITEMS


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_a_split_at_any_byte_changes_nothing(line_end: str) -> None:
    data = STREAM.replace("\n", line_end).encode()

    for cut in range(len(data) + 1):
        assert decode([data[:cut], data[cut:]]) == ITEMS, f"cut at {cut}"


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_single_bytes_change_nothing(line_end: str) -> None:
    data = STREAM.replace("\n", line_end).encode()

    assert decode(data[i : i + 1] for i in range(len(data))) == ITEMS


@given(
    st.lists(st.sampled_from(["data: a", "data", ": c", "event: e", "", "", "retry: 5", "data:  b", "x"]), max_size=12),
    st.data(),
)
def test_any_lines_split_anywhere_give_what_they_give_whole(lines: list[str], data: st.DataObject) -> None:
    raw = "".join(line + data.draw(st.sampled_from(LINE_ENDS)) for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    whole, split = Decoder(), Decoder()

    bounds = [0, *cuts, len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(bounds)]

    assert [item for piece in pieces for item in split.feed(piece)] == list(whole.feed(raw))
    assert split.incomplete == whole.incomplete


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_arbitrary_bytes_never_raise(first: bytes, second: bytes) -> None:
    decoder = Decoder()

    list(decoder.feed(first))
    list(decoder.feed(second))


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_an_event_comes_with_the_last_byte_of_its_empty_line(line_end: str) -> None:
    """A decoder that waits after CR for an LF would lose the last event of a stream, and show every one late."""
    decoder = Decoder()

    assert list(decoder.feed(f"data: x{line_end}{line_end}".encode())) == [Event("x")]
    assert not decoder.incomplete


def test_one_space_after_the_colon_goes_and_no_more() -> None:
    assert decode([b"data:  two\n\ndata:none\n\n"]) == [Event(" two"), Event("none")]


def test_only_line_ends_of_the_standard_end_a_line() -> None:
    text = "a\u2028b\x0bc\x0cd\x85e"

    assert decode([f"data: {text}\n\n".encode()]) == [Event(text)]


def test_an_event_without_data_is_none_and_its_name_is_forgotten() -> None:
    assert decode([b"event: ping\n\ndata: x\n\n"]) == [Event("x")]


def test_a_comment_inside_an_event_does_not_disturb_it() -> None:
    assert decode([b"data: a\n: keep-alive\ndata: b\n\n"]) == [Comment("keep-alive"), Event("a\nb")]


@pytest.mark.parametrize("cut_short", [b"data: {", b"data: {}", b"data: {}\n", b"event: error\n", b": half a comm"])
def test_a_stream_that_ends_inside_an_event_is_incomplete(cut_short: bytes) -> None:
    decoder = Decoder()

    assert list(decoder.feed(b"data: whole\n\n" + cut_short)) == [Event("whole")]
    assert decoder.incomplete


def test_the_end_mark_is_recognised() -> None:
    assert Event(DONE).done
    assert Event(" [DONE] ").done
    assert not Event("[DONE]!").done


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), st.sampled_from([None, "error"]))
def test_what_is_encoded_is_decoded(text: str, name: str | None) -> None:
    assert decode([encode_event(text, name)]) == [Event(text, name or "message")]
    assert decode([encode_event(text.encode(), name)]) == [Event(text, name or "message")]
    assert decode([encode_comment(text)]) == [Comment(text)]


def test_a_byte_order_mark_before_the_stream_is_no_part_of_it() -> None:
    data = b"\xef\xbb\xbf" + STREAM.encode()

    for cut in range(6):
        assert decode([data[:cut], data[cut:]]) == ITEMS, f"cut at {cut}"


@pytest.mark.parametrize(
    ("data", "pending"),
    [
        (b"data: [DONE]", "[DONE]"),
        (b"data: [DONE]\n", "[DONE]"),
        (b"data:[DO", "[DO"),
        (b"data: a\ndata: b", "a\nb"),
        (b"data: a\n\nevent: x", ""),
        (b"data: a\n\n", ""),
    ],
)
def test_what_the_stream_ended_inside_of_can_be_asked_for(data: bytes, pending: str) -> None:
    decoder = Decoder()
    list(decoder.feed(data))

    assert decoder.pending == pending
