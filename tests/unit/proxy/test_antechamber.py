"""Places for connections that may be probes: a flood takes none from a probe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.api.antechamber import Antechamber, may_be_probe

PROBE = b"GET /health HTTP/1.1\r\n"
OTHER = b"POST /v1/completions HTTP/1.1\r\n"


class Door:
    """An antechamber with three places, and who had to leave it."""

    def __init__(self) -> None:
        self.rooms = Antechamber(3)
        self.gone: list[str] = []

    def enter(self, name: str, client: str, head: bytes = b"") -> bool:
        return self.rooms.enter(name, client, head, lambda: self.gone.append(name))


def test_the_oldest_connection_of_the_client_with_the_most_makes_room() -> None:
    door = Door()
    assert all([door.enter("kubelet", "10.0.0.1"), door.enter("a", "10.0.0.2"), door.enter("b", "10.0.0.2")])
    assert door.enter("c", "10.0.0.3", PROBE)
    assert door.gone == ["a"]


def test_what_is_no_probe_makes_nobody_leave() -> None:
    door = Door()
    assert all(door.enter(name, "10.0.0.2") for name in "abc")
    assert not door.enter("d", "10.0.0.3", OTHER)
    assert not door.gone


def test_a_probe_that_is_being_served_keeps_its_place_until_it_has_left() -> None:
    door = Door()
    for name in "abc":
        assert door.enter(name, "10.0.0.2", PROBE)
        door.rooms.serve(name)
    assert not door.enter("d", "10.0.0.3", PROBE)
    door.rooms.left("b")
    assert door.enter("d", "10.0.0.3", PROBE)
    assert not door.gone


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([b"", b"GET /he", OTHER])), max_size=200))
def test_a_probe_among_any_flood_gets_a_place_and_its_own_client_keeps_it(flood: list[tuple[int, bytes]]) -> None:
    door = Door()
    for number, (client, head) in enumerate(flood):
        door.enter(f"flood-{number}", "flooder" if client else f"other-{number}", head)
    assert door.enter("probe", "kubelet", PROBE)
    for number in range(2):
        door.enter(f"more-{number}", "flooder")
    assert "probe" not in door.gone


@pytest.mark.parametrize(
    ("head", "may"),
    [
        (b"", True),
        (b"GET /re", True),
        (b"GET /metrics?x=1 H", True),
        (b"HEAD /health HTTP", True),
        (b"GET /healthy", False),
        (b"POST /health ", False),
        (b"GET /v1", False),
        (PROBE, True),
    ],
)
def test_a_probe_is_known_by_its_beginning(head: bytes, may: bool) -> None:
    assert may_be_probe(head) is may
