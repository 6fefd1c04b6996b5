"""Where another engine continues a broken stream: no text is lost or repeated, wherever it broke."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from pd_proxy.protocol.continued import Begun, PartRewriter
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.progress import Progress, Restart
from pd_proxy.protocol.rewrite import Cleaning

# A token's text: words, a special token without any, and halves of a character, which show when the second comes.
TOKENS = ["a", " the", "stop", " sto", "p", "", "half", "ing", " x"]
PIECES = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=30)
STOPS = st.lists(st.sampled_from(["stop", "the end", "xyz", "p p"]), max_size=2, unique=True)


class Detokenizer:
    """vLLM's, as far as text is held back: for a stop string, and for half a character."""

    def __init__(self, stops: list[str], *, part: bool) -> None:
        self.held = 0 if part else max(map(len, stops), default=1) - 1
        self.text, self.half, self.sent = "", "", 0

    def add(self, piece: str, *, last: bool) -> str:
        if piece == "half" and not last:
            self.half += "h"
            return ""
        self.text += self.half + piece
        self.half = ""
        if not piece:
            return ""
        end = len(self.text) if last else max(self.sent, len(self.text) - self.held)
        new, self.sent = self.text[self.sent : end], end
        return new


def stream(pieces: list[str], stops: list[str], *, part: bool) -> list[str]:
    detokenizer = Detokenizer(stops, part=part)
    return [detokenizer.add(piece, last=number == len(pieces) - 1) for number, piece in enumerate(pieces)]


@given(PIECES, STOPS, st.booleans(), st.integers(0, 29))
def test_the_client_gets_the_same_text_wherever_the_first_engine_died(
    pieces: list[str], stops: list[str], part: bool, died: int
) -> None:
    deltas = stream(pieces, stops, part=part)
    died = min(died, len(pieces) - 1)  # tokens that came
    progress = Progress(chat=False, stops=tuple(stops), shows_stop=part)
    progress.prompt = Raw(b"[1]")
    for number in range(died):
        progress.add([number], deltas[number])

    restart = progress.restart()

    assert restart is not None
    again = stream(pieces[len(restart.tokens) :], stops, part=part)
    assert "".join(deltas[:died]) + "".join(again)[restart.skip :] == "".join(deltas)
    assert len(restart.tokens) + restart.skip_ids == died
    assert restart.tokens == list(range(len(restart.tokens)))


def event(text: str, ids: list[int], *, finish: str | None = None, chat: bool = False) -> bytes:
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "finish_reason": finish, "token_ids": ids}
    return b"data: " + json.dumps({"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(['"', "", "]", "ü", '"token_ids":[']), st.lists(st.integers(0, 9), min_size=1, max_size=3)
        )
    ),
    st.booleans(),
)
def test_a_glance_sees_what_a_close_look_sees(chunks: list[tuple[str, list[int]]], chat: bool) -> None:
    glanced, looked = Progress(chat=chat), Progress(chat=chat)
    glanced.prompt = looked.prompt = Raw(b"[1]")
    block = b"".join(event(text, ids, chat=chat) for text, ids in chunks)
    shown = glanced.glance(block)
    for text, ids in chunks:
        looked.add(ids, text)

    one, other = glanced.restart(), looked.restart()
    assert one is not None
    assert other is not None
    assert (one.tokens, one.skip, one.skip_ids) == (other.tokens, other.skip, other.skip_ids)
    assert shown == b"".join(
        event(text, ids, chat=chat).replace(json.dumps(ids, separators=(",", ":")).encode(), b"null")
        for text, ids in chunks
    )


def test_the_end_is_seen_in_passing() -> None:
    progress = Progress(chat=False)
    progress.glance(event("a", [1]))
    assert not progress.finished
    progress.glance(event("a", [1], finish="length"))
    assert progress.finished


def test_the_first_engines_token_is_a_place_to_go_on_from() -> None:
    progress = Progress(chat=False, stops=("a long stop string",))
    progress.begin(Restart(Raw(b"[1]"), b"5", [7]), "Once")
    assert progress.restart() == Restart(Raw(b"[1]"), b"5", [7], 0, 0)


@pytest.mark.parametrize(
    ("said", "continued"),
    [
        ({"content": "a"}, True),
        ({"reasoning": "hm"}, False),
        ({"reasoning_content": "hm"}, False),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, False),
    ],
)
def test_a_stream_in_which_a_parser_found_more_than_text_is_not_continued(
    said: dict[str, Any], continued: bool
) -> None:
    progress = Progress(chat=True)
    rewriter = PartRewriter(Begun(), "1", Cleaning(Endpoint.CHAT), progress=progress)
    begun = {"prompt_token_ids": [1, 2], "created": 100, "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    chunk = {"created": 100, "choices": [{"index": 0, "delta": said, "finish_reason": None, "token_ids": [5]}]}
    for one in (begun, chunk):
        rewriter.feed(b"data: " + json.dumps(one).encode() + b"\n\n")

    assert (progress.restart() is not None) is continued
