"""Which KV a batched decode waits for, takes, drops and gives up."""

import pytest

from pd_engine.kv_loads import Load, Loads

TIMEOUT_S = 30.0
ORPHAN_S = 60.0


@pytest.fixture
def loads() -> Loads:
    return Loads(TIMEOUT_S, ORPHAN_S)


def load(name: str) -> Load:
    return Load(name, block_ids=[4, 5])


def test_kv_that_comes_is_taken_once(loads: Loads) -> None:
    loads.expect(load("a"), now=0)

    assert loads.look({}, set(), now=1).arrived == []
    assert loads.look({"a"}, set(), now=2).arrived == [load("a")]
    assert loads.look({"a"}, set(), now=3).arrived == []


def test_one_request_does_not_wait_for_another(loads: Loads) -> None:
    loads.expect(load("slow"), now=0)
    loads.expect(load("quick"), now=0)

    outcome = loads.look({"quick"}, set(), now=1)

    assert outcome.arrived == [load("quick")]
    assert outcome.overdue == []


def test_kv_that_does_not_come_is_given_up_and_dropped_if_it_comes_later(loads: Loads) -> None:
    loads.expect(load("a"), now=0)

    assert loads.look({}, set(), now=TIMEOUT_S).overdue == []
    assert loads.look({}, set(), now=TIMEOUT_S + 1).overdue == [load("a")]
    assert loads.look({}, set(), now=TIMEOUT_S + 2).overdue == []
    late = loads.look({"a"}, set(), now=TIMEOUT_S + 3)
    assert (late.arrived, late.unwanted) == ([], ["a"])


def test_kv_that_is_here_at_the_last_moment_is_taken(loads: Loads) -> None:
    loads.expect(load("a"), now=0)

    outcome = loads.look({"a"}, set(), now=TIMEOUT_S + 1)

    assert (outcome.arrived, outcome.overdue) == ([load("a")], [])


def test_a_request_that_ends_early_is_reported_once_and_its_kv_dropped(loads: Loads) -> None:
    loads.expect(load("a"), now=0)

    assert loads.look({}, {"a", "never-waited"}, now=1).abandoned == {"a"}
    assert loads.look({}, {"a"}, now=2).abandoned == set()
    late = loads.look({"a"}, set(), now=3)
    assert (late.arrived, late.unwanted) == ([], ["a"])


def test_a_request_that_ends_while_its_kv_is_here_is_not_given_blocks_that_are_free_by_then(loads: Loads) -> None:
    loads.expect(load("a"), now=0)

    outcome = loads.look({"a"}, {"a"}, now=1)

    assert (outcome.arrived, outcome.unwanted, outcome.abandoned) == ([], ["a"], {"a"})


@pytest.mark.parametrize("at_once", [False, True])
def test_an_id_that_is_used_again_gets_its_kv(loads: Loads, *, at_once: bool) -> None:
    loads.expect(load("a"), now=0)
    loads.look({}, {"a"}, now=1)

    if at_once:  # it is here already: the engine takes it without asking
        loads.use("a")
        assert loads.look({"a"}, set(), now=2).unwanted == []
    else:
        loads.expect(load("a"), now=2)
        again = loads.look({"a"}, set(), now=3)
        assert (again.arrived, again.unwanted) == ([load("a")], [])


def test_kv_of_which_nobody_hears_is_dropped_in_the_end(loads: Loads) -> None:
    assert loads.look({"a"}, set(), now=0).unwanted == []
    assert loads.look({"a"}, set(), now=ORPHAN_S).unwanted == []
    assert loads.look({"a"}, set(), now=ORPHAN_S + 1).unwanted == ["a"]
    assert loads.look({"a"}, set(), now=ORPHAN_S + 2).unwanted == []


def test_kv_of_a_request_that_queues_is_kept(loads: Loads) -> None:
    loads.know("a")

    assert loads.look({"a"}, set(), now=0).unwanted == []
    assert loads.look({"a"}, set(), now=10 * ORPHAN_S).unwanted == []
    loads.expect(load("a"), now=10 * ORPHAN_S)
    assert loads.look({"a"}, set(), now=10 * ORPHAN_S).arrived == [load("a")]


def test_kv_that_nobody_needs_is_dropped_once(loads: Loads) -> None:
    loads.decline("a")

    assert loads.look({}, set(), now=1).unwanted == []
    assert loads.look({"a"}, set(), now=2).unwanted == ["a"]
    assert loads.look({"a"}, set(), now=3).unwanted == []
