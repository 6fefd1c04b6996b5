"""The memory of requests that are still arriving: never above the limit, and it is the one that has held the most for the longest that makes room."""

from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.errors import UploadsFullError
from pd_proxy.uploads import Upload, Uploads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_upload_that_has_held_the_most_for_the_longest_makes_room_and_learns_why() -> None:
    clock, reasons, errors = Clock(), list[str](), list[UploadsFullError]()
    uploads = Uploads(1000, clock, reasons.append)
    slow = uploads.begin(errors.append)
    slow.holds(500)
    clock.now = 10.0
    quick = uploads.begin(errors.append)
    quick.holds(400)
    assert not errors

    clock.now = 11.0
    idle = uploads.begin(errors.append)
    quick.holds(600)

    assert idle.refused is None  # it holds nothing
    assert slow.refused is errors[0]
    assert quick.refused is None
    assert (errors[0].status, errors[0].headers["Retry-After"]) == (503, "3")
    assert "MAX_UPLOAD_BYTES" in errors[0].message
    assert (len(reasons), uploads.size) == (1, 600)
    slow.holds(700)  # what still arrives counts no more
    assert uploads.size == 600
    quick.end()
    quick.end()
    assert uploads.size == 0


@given(
    st.integers(0, 3000),
    st.lists(
        st.tuples(st.sampled_from(["begin", "more", "more", "end"]), st.integers(0, 9), st.integers(0, 900)),
        max_size=60,
    ),
)
def test_the_limit_holds_whatever_arrives(limit: int, steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    uploads, known = Uploads(limit, clock, lambda _: None), list[Upload]()
    ended = set[int]()
    for step, number, size in steps:
        clock.now += 0.3
        if step == "begin" or not known:
            known.append(uploads.begin(lambda _: None))
        elif step == "more" and (at := number % len(known)) not in ended:
            known[at].holds(known[at].held + size)
        elif step == "end":
            ended.add(number % len(known))
            known[number % len(known)].end()
        assert not limit or uploads.size <= limit
        alive = [one for at, one in enumerate(known) if at not in ended and one.refused is None]
        assert uploads.size == sum(one.held for one in alive)
