"""Whether the prompt that decode was told is the one that prefill computed."""

import json

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from pd_proxy.request.announcement import same_ids

IDS = st.lists(st.integers(0, 200), max_size=5)
STYLES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", ":")])


def written(ids: list[int], style: tuple[str, str]) -> Raw:
    return Raw(json.dumps(ids, separators=style).encode())


@given(IDS, STYLES, IDS, STYLES)
def test_ids_are_compared_however_they_are_written(
    one: list[int], ones: tuple[str, str], other: list[int], others: tuple[str, str]
) -> None:
    assert same_ids(written(one, ones), written(one, others))
    assert same_ids(written(one, ones), written(other, others)) == (one == other)


def test_digits_stay_with_their_ids() -> None:
    assert not same_ids(Raw(b"[1, 23]"), Raw(b"[12, 3]"))
    assert same_ids(Raw(b"[1, 0]"), Raw(b"[1,-0]"))
