"""Stop strings are found wherever tokens split them."""

from hypothesis import given
from hypothesis import strategies as st

from pd_simulator.api.output import Output, StopStrings
from pd_simulator.tokenizer import Tokenizer

PIECES = st.lists(st.text("abc", min_size=0, max_size=4), min_size=1, max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    finder, shown = StopStrings(tuple(stops)), ""
    for number, piece in enumerate(pieces):
        text, stop = finder.feed(piece, last=number == len(pieces) - 1)
        shown += text
        if stop is not None:
            return shown, stop
    return shown, None


@given(STOPS, PIECES)
def test_what_is_shown_ends_before_the_first_stop_string(stops: list[str], pieces: list[str]) -> None:
    shown, stop = run(stops, pieces)

    text = "".join(pieces)
    if stop is None:
        assert shown == text
        assert not any(candidate in text for candidate in stops)
    else:
        assert text.startswith(shown + stop)
        assert not any(candidate in shown for candidate in stops)


def test_text_that_could_begin_a_stop_string_is_held_back() -> None:
    finder = StopStrings(("END",))

    assert finder.feed("abcE", last=False) == ("ab", None)
    assert finder.feed("N", last=False) == ("c", None)
    assert finder.feed("X", last=False) == ("E", None)
    assert finder.feed("", last=True) == ("NX", None)


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings(()).feed("abc", last=False) == ("abc", None)


def test_a_stop_string_gives_the_reason() -> None:
    tokenizer = Tokenizer()
    first, second = tokenizer.words[0], tokenizer.words[1]
    output = Output(tokenizer, StopStrings((tokenizer.output_text(second).strip(),)))

    output.add(first, None)
    output.add(second, "length")

    assert (output.finish_reason, output.stop_reason) == ("stop", tokenizer.output_text(second).strip())
    assert output.token_ids == [first, second]
    assert "".join(output.text) == tokenizer.output_text(first) + " "
