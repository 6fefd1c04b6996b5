import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pd_contracts import sse, timing
from pd_contracts.timing import Stages

STAGES = Stages(
    queue=0.5,
    prefill=12.25,
    kv_and_first_decode=3.5,
    decode=100.0,
    prefill_instance="prefill-0",
    decode_instance="decode-1",
    retries=1,
)


def test_a_header_is_read_back() -> None:
    assert timing.decode(timing.encode(STAGES)) == STAGES


def test_a_comment_survives_the_stream() -> None:
    (comment,) = sse.Decoder().feed(sse.encode_comment(timing.PREFIX + timing.encode(STAGES)))

    assert isinstance(comment, sse.Comment)
    assert timing.decode(comment.text) == STAGES


@given(st.text(st.characters()))
@example("\udc80")  # what a header that is no UTF-8 becomes
@example(timing.PREFIX)
@example('{"queue": 1}')
@example('{"x": ' * 5000)
def test_anything_else_is_no_timing_and_no_error(text: str) -> None:
    assert timing.decode(text) is None


@pytest.mark.parametrize(
    "stages", [STAGES, Stages(queue=0, prefill=0, kv_and_first_decode=1, decode=2, decode_instance="combined-0")]
)
def test_the_line_fits_a_header(stages: Stages) -> None:
    assert timing.encode(stages).isascii()
    assert "\n" not in timing.encode(stages)
