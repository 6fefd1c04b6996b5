"""Decode's scheduler and requests whose KV comes from another engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector.core.loads import HELD_S, LOCAL_GRACE_S, PLAIN, TOKENS, WAIT, Found, Loads, Verdict
from pd_connector.core.orders import (
    Copy,
    Count,
    Drain,
    Drop,
    Event,
    Expect,
    Failed,
    Forget,
    Landing,
    Load,
    Order,
    Park,
    Pressed,
    Ready,
    Release,
)


def loads(*, ranks: int = 1, fail: bool = False) -> Loads:
    return Loads(ranks, fail=fail)


def add(
    found: Loads, name: str = "r", *, source: str = "p:1", prompt: int = 40, tokens: int = 40, **extra: bool
) -> list[Order]:
    return found.add(
        name, "k", source=source, prompt=prompt, tokens=tokens, follows=extra.get("follows", False), now=0.0
    )


def test_a_request_waits_and_runs_in_the_round_after_its_kv_came() -> None:
    waiting = loads()
    assert add(waiting) == [Expect("k", "p:1", follows=False)]
    assert waiting.verdict("r", 0, 0.0) == WAIT
    waiting.inbox.append((0, Landing("k")))
    assert waiting.verdict("r", 0, 0.0) == WAIT
    waiting.inbox.append((0, Ready("k")))

    assert waiting.verdict("r", 16, 0.0) == Found(Verdict.LOAD, 23)  # the last token is always computed here
    assert waiting.allocated("r", (3, 4, 5), 1, 23) == [Load("r", "k", (3, 4, 5), 1)]
    assert waiting.verdict("r", 0, 0.0) == PLAIN  # preempted later: computed like any other
    assert waiting.finished("r") == ([], "loaded")
    assert len(waiting) == 0


def test_kv_must_arrive_at_every_rank() -> None:
    waiting = loads(ranks=2)
    add(waiting)
    waiting.inbox.append((1, Ready("k")))
    assert waiting.verdict("r", 0, 0.0) == WAIT
    waiting.inbox.append((0, Ready("k")))
    assert waiting.verdict("r", 0, 0.0).verdict is Verdict.LOAD


def test_what_the_prefix_cache_has_is_not_waited_for() -> None:
    waiting = loads()
    add(waiting, prompt=41, tokens=41)

    assert waiting.verdict("r", 40, 0.0) == PLAIN
    assert waiting.allocated("r", (1, 2, 3), 2, 0) == [Drop("k", "cached")]
    assert waiting.finished("r") == ([], "cached")


def test_a_lost_key_is_computed_here() -> None:
    waiting = loads()
    add(waiting)
    waiting.inbox.append((0, Failed("k", "prefill is gone")))

    assert waiting.verdict("r", 0, 0.0) == PLAIN
    assert waiting.allocated("r", (1, 2, 3), 0, 0) == [Drop("k", "recomputed")]
    assert waiting.finished("r") == ([], "recomputed")


def test_with_the_policy_fail_a_request_whose_key_is_lost_fails() -> None:
    waiting = loads(fail=True)
    add(waiting)
    waiting.inbox.append((0, Failed("k", "prefill is gone")))

    assert waiting.verdict("r", 0, 0.0) == Found(Verdict.DRAIN, 39)
    assert waiting.allocated("r", (1, 2, 3), 0, 39) == [Drain("r", "k", (1, 2, 3), 0)]
    waiting.drained("r")
    assert waiting.finished("r") == ([], "recomputed")


def test_while_landing_memory_is_short_requests_take_their_blocks_early() -> None:
    waiting = loads()
    add(waiting)
    waiting.inbox.append((0, Pressed(pressed=True)))
    assert waiting.verdict("r", 0, 0.0) == WAIT, "nothing of it has come: blocks would not help"
    waiting.inbox.append((0, Landing("k")))
    assert waiting.verdict("r", 0, 0.0) == Found(Verdict.DRAIN, 39)
    waiting.inbox.append((0, Pressed(pressed=False)))
    assert waiting.verdict("r", 0, 0.0) == WAIT
    waiting.inbox.append((0, Pressed(pressed=True)))
    assert waiting.verdict("r", 0, 0.0).verdict is Verdict.DRAIN
    assert waiting.allocated("r", (1, 2, 3), 0, 39) == [Drain("r", "k", (1, 2, 3), 0)]
    waiting.inbox.append((0, Ready("k")))
    waiting.drained("r")
    assert waiting.finished("r") == ([], "loaded")


def test_a_token_that_follows_is_waited_for_even_if_all_else_is_cached() -> None:
    waiting = loads()
    assert add(waiting, prompt=41, follows=True) == [Expect("k", "p:1", follows=True)]
    assert waiting.verdict("r", 40, 0.0) == WAIT
    waiting.inbox.append((0, Ready("k", 99)))

    assert waiting.verdict("r", 40, 0.0) == PLAIN
    assert waiting.token("r") == (99, "")


def test_the_place_holder_of_a_lost_token_is_never_taken_for_the_token() -> None:
    waiting = loads()
    add(waiting, prompt=41, follows=True)
    waiting.inbox.append((0, Failed("k", "prefill is gone")))

    assert waiting.verdict("r", 0, 0.0) == PLAIN
    assert waiting.token("r") == (None, "prefill is gone")


def test_requests_without_a_token_to_follow_need_none() -> None:
    waiting = loads()
    add(waiting)

    assert waiting.token("r") == (None, "")
    assert waiting.token("a stranger") == (None, "")


def test_a_client_that_leaves_frees_its_key() -> None:
    waiting = loads()
    add(waiting)

    assert waiting.finished("r") == ([Drop("k", "aborted")], "aborted")
    waiting.inbox.append((0, Ready("k")))
    waiting.read()
    assert len(waiting) == 0


def test_of_several_answers_to_one_prompt_the_first_takes_the_kv() -> None:
    waiting = loads(fail=True)
    add(waiting, "first")

    assert add(waiting, "second") == []
    assert waiting.verdict("second", 0, 0.0) == PLAIN
    assert waiting.allocated("second", (1,), 0, 0) == [Count("recomputed")]
    assert waiting.finished("second") == ([], "recomputed")
    assert waiting.verdict("first", 0, 0.0) == WAIT


@pytest.mark.parametrize(("cached", "outcome"), [(0, "recomputed"), (16, "recomputed"), (32, "cached")])
def test_a_second_answer_that_the_prefix_cache_has_is_not_recomputed(cached: int, outcome: str) -> None:
    waiting = Loads(1, fail=False, block_size=16)
    add(waiting, "first")
    add(waiting, "second")

    assert waiting.verdict("second", cached, 0.0) == PLAIN
    assert waiting.allocated("second", (1, 2, 3), 2, 0) == [Count(outcome)]
    assert waiting.finished("second") == ([], outcome)


class TestOnTheSameEngine:
    def test_a_request_waits_until_its_own_engines_prefill_has_ended(self) -> None:
        waiting = loads()
        assert add(waiting, source="") == []
        assert waiting.verdict("r", 0, 0.0, computing=True) == WAIT
        assert waiting.verdict("r", 0, 1000.0, computing=True) == WAIT
        waiting.computed_here("k", 7)

        assert waiting.verdict("r", 32, 1000.0) == PLAIN
        assert waiting.allocated("r", (1, 2, 3), 2, 0) == [Forget("k", "decode runs here")]

    def test_kept_kv_is_found_in_the_prefix_cache(self) -> None:
        waiting = loads()
        add(waiting, source="")

        assert waiting.verdict("r", 32, 0.0, kept=True) == PLAIN

    def test_the_token_of_a_local_prefill_follows(self) -> None:
        waiting = loads()
        add(waiting, source="", prompt=41, follows=True)
        assert waiting.verdict("r", 0, 0.0, computing=True) == WAIT
        waiting.computed_here("k", 7)

        assert waiting.token("r") == (7, "")

    def test_a_request_that_comes_after_its_prefill_has_ended_has_the_token_too(self) -> None:
        waiting = loads()
        waiting.computed_here("k", 7)
        add(waiting, source="", prompt=41, follows=True)

        assert waiting.verdict("r", 32, 0.0, kept=True) == PLAIN
        assert waiting.token("r") == (7, "")

    def test_tokens_of_ended_prefills_are_not_remembered_for_ever(self) -> None:
        waiting = loads()
        waiting.computed_here("k", 7)
        for number in range(TOKENS):
            waiting.computed_here(f"k{number}", 8)
        add(waiting, source="", prompt=41, follows=True)

        assert waiting.verdict("r", 32, 0.0, kept=True) == WAIT

    def test_a_prefill_that_does_not_come_is_not_waited_for_long(self) -> None:
        waiting = loads()
        add(waiting, source="")
        assert waiting.verdict("r", 0, LOCAL_GRACE_S - 0.1) == WAIT

        assert waiting.verdict("r", 0, LOCAL_GRACE_S + 0.1) == PLAIN
        assert waiting.allocated("r", (1,), 0, 0) == [Forget("k", "decode runs here")]

    def test_an_aborted_prefill_is_computed_again(self) -> None:
        waiting = loads()
        add(waiting, source="", prompt=41, follows=True)
        waiting.computed_here("k", None)

        assert waiting.verdict("r", 0, 0.0) == PLAIN
        assert waiting.token("r") == (None, "prefill was aborted")

    def test_a_client_that_leaves_lets_its_kv_go(self) -> None:
        waiting = loads()
        add(waiting, source="")

        assert waiting.finished("r") == ([Forget("k", "its decode ended")], "aborted")


@pytest.mark.parametrize("name", ["plain", "r"])
def test_requests_that_were_never_added_are_plain(name: str) -> None:
    waiting = loads()

    assert waiting.verdict(name, 0, 0.0) == PLAIN
    assert waiting.allocated(name, (1,), 0, 0) == []
    assert waiting.finished(name) == ([], "")


EVENTS = ("landing", "ready", "failed", "pressed", "relieved", "schedule", "finish")


@given(
    ranks=st.integers(1, 3),
    fail=st.booleans(),
    cached=st.integers(0, 39),
    follows=st.booleans(),
    steps=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3), st.integers(0, 2)), max_size=60),
)
def test_in_every_order_of_events_kv_is_used_or_dropped_exactly_once(
    ranks: int, cached: int, steps: list[tuple[str, int, int]], *, fail: bool, follows: bool
) -> None:
    """Four requests, two and two with one key; each prompt has 40 tokens, of which the prefix cache may have some."""
    waiting, keys = Loads(ranks, fail=fail), {name: f"k{name % 2}" for name in range(4)}
    ready: dict[str, set[int]] = {"k0": set(), "k1": set()}
    ends: dict[str, list[Order]] = {"k0": [], "k1": []}
    over, owners = set[int](), dict[str, int]()
    for name, key in keys.items():
        expected = waiting.add(
            str(name), key, source="10.0.0.1:1", prompt=40, tokens=39 if follows else 40, follows=follows, now=0.0
        )
        assert expected == ([Expect(key, "10.0.0.1:1", follows)] if owners.setdefault(key, name) == name else [])
    for what, name, rank in [*steps, *(("finish", name, 0) for name in range(4))]:
        key = keys[name]
        if what in ("landing", "ready", "failed") and rank < ranks:
            events: dict[str, Event] = {"landing": Landing(key), "ready": Ready(key, 7), "failed": Failed(key, "lost")}
            waiting.inbox.append((rank, events[what]))
            ready[key] |= {rank} if what == "ready" else set()
        elif what in ("pressed", "relieved"):
            waiting.inbox.append((rank % ranks, Pressed(what == "pressed")))
        elif what == "schedule" and name not in over:
            found = waiting.verdict(str(name), cached, 0.0)
            external = found.tokens if found.verdict in (Verdict.LOAD, Verdict.DRAIN) else 0
            if found.verdict is Verdict.LOAD:
                assert len(ready[key]) == ranks, "nothing runs before all ranks have its KV"
            if found.verdict is not Verdict.WAIT:
                assert external + cached <= 40
                told = waiting.allocated(str(name), (1, 2, 3), 0, external)
                ends[key] += [order for order in told if not isinstance(order, Count)]
        elif what == "finish" and name not in over:
            over.add(name)
            orders, outcome = waiting.finished(str(name))
            ends[key] += orders
            assert outcome in ("loaded", "drained", "recomputed", "cached", "aborted", "")
    assert len(waiting) == 0
    for ended in ends.values():
        assert len(ended) == 1, f"the workers hear exactly once what becomes of a key: {ended}"


def passed_on(*, ran: bool) -> Loads:
    """An announced request that waits for its KV, or runs with it in blocks 3 and 4."""
    waiting = loads()
    add(waiting, "announced", prompt=41, follows=True)
    if ran:
        waiting.inbox.append((0, Ready("k", 9)))
        assert waiting.verdict("announced", 0, 0.0) == Found(Verdict.LOAD, 40)
        waiting.allocated("announced", (3, 4), 0, 40)
    return waiting


class TestInThePlaceOfAnAnnouncedRequest:
    """The router announced a request, and then sends the whole prompt under the same key."""

    def test_kv_that_has_not_come_is_parked_for_it(self) -> None:
        waiting = passed_on(ran=False)
        assert waiting.finished("announced") == ([Park("k")], "aborted")
        assert add(waiting, "whole") == [Expect("k", "p:1", follows=False)]
        waiting.inbox.append((0, Ready("k", 9)))
        assert waiting.verdict("whole", 0, 0.0) == Found(Verdict.LOAD, 39)

    def test_the_next_request_may_come_before_the_abort(self) -> None:
        waiting = passed_on(ran=False)
        assert add(waiting, "whole") == []
        assert waiting.verdict("whole", 0, 0.0) == WAIT
        assert waiting.finished("announced") == ([Expect("k", "p:1", follows=False)], "aborted")
        assert waiting.verdict("whole", 0, 0.0) == WAIT
        waiting.inbox.append((0, Ready("k", 9)))
        assert waiting.verdict("whole", 0, 0.0) == Found(Verdict.LOAD, 39)
        assert waiting.allocated("whole", (7, 8), 0, 39) == [Load("whole", "k", (7, 8), 0)]
        assert waiting.finished("whole") == ([], "loaded")
        assert len(waiting) == 0

    def test_one_that_runs_already_because_its_prompt_was_cached_gets_no_kv(self) -> None:
        """It would not take it, and what nobody takes fills landing memory forever."""
        waiting = passed_on(ran=False)
        add(waiting, "whole")
        assert waiting.verdict("whole", 39, 0.0) == PLAIN
        assert waiting.allocated("whole", (7, 8), 2, 0) == [Count("cached")]
        assert waiting.finished("announced") == ([Park("k")], "aborted")
        assert waiting.finished("whole") == ([], "cached")
        assert len(waiting) == 0

    def test_only_one_of_several_takes_the_kv(self) -> None:
        waiting = passed_on(ran=False)
        add(waiting, "whole")
        add(waiting, "another")
        assert waiting.finished("announced") == ([Expect("k", "p:1", follows=False)], "aborted")
        assert waiting.verdict("whole", 0, 0.0) == WAIT
        assert waiting.verdict("another", 0, 0.0) == PLAIN
        assert waiting.allocated("another", (5, 6), 0, 0) == [Count("recomputed")]

    def test_kv_of_one_that_runs_is_copied_from_its_blocks(self) -> None:
        waiting = passed_on(ran=True)
        add(waiting, "whole")
        assert waiting.verdict("whole", 0, 0.0) == Found(Verdict.LOAD, 39)
        assert waiting.allocated("whole", (7, 8), 0, 39) == [Copy("whole", "k", (3, 4), (7, 8), 0)]
        assert not waiting.hold("announced", 0.0), "nobody else needs them"

    @pytest.mark.parametrize("first", [True, False], ids=["asked before the abort", "after"])
    def test_blocks_of_one_that_ran_stay_until_they_are_copied(self, *, first: bool) -> None:
        waiting = passed_on(ran=True)
        if first:
            add(waiting, "whole")
        assert waiting.hold("announced", 0.0)
        assert waiting.finished("announced") == ([], "loaded")
        if not first:
            assert add(waiting, "whole") == []
        assert waiting.expired(HELD_S + 1) == [], "somebody waits for them"
        assert waiting.verdict("whole", 16, 0.0) == Found(Verdict.LOAD, 23)
        assert waiting.allocated("whole", (7, 8), 1, 23) == [Copy("whole", "k", (3, 4), (7, 8), 1, "announced")]
        assert waiting.expired(HELD_S + 1) == []

    def test_blocks_that_nobody_comes_for_are_given_back(self) -> None:
        waiting = passed_on(ran=True)
        assert waiting.hold("announced", 0.0)
        waiting.finished("announced")
        assert waiting.expired(HELD_S / 2) == []
        assert waiting.expired(HELD_S + 0.1) == [Release("announced")]
        assert waiting.expired(HELD_S + 0.1) == []

    @pytest.mark.parametrize("fail", [False, True])
    @pytest.mark.parametrize("first", [True, False], ids=["asked before the abort", "after"])
    def test_kv_on_its_way_into_blocks_of_an_aborted_request_is_computed(self, *, first: bool, fail: bool) -> None:
        waiting = loads(fail=fail)
        add(waiting, "announced", prompt=41, follows=True)
        waiting.inbox += [(0, Pressed(pressed=True)), (0, Landing("k"))]
        assert waiting.verdict("announced", 0, 0.0) == Found(Verdict.DRAIN, 40)
        waiting.allocated("announced", (3, 4), 0, 40)
        if first:
            assert add(waiting, "whole") == []
        assert waiting.finished("announced") == ([], "drained")
        if not first:
            assert add(waiting, "whole") == [], "the workers hear of the abort after this, and would forget it"
        assert waiting.verdict("whole", 0, 0.0) == PLAIN
        assert waiting.allocated("whole", (7, 8), 0, 0) == [Count("recomputed")]
        assert waiting.finished("whole") == ([], "recomputed")
        assert len(waiting) == 0

    def test_a_request_that_is_given_up_meanwhile_keeps_no_blocks(self) -> None:
        waiting = passed_on(ran=True)
        add(waiting, "whole")
        waiting.hold("announced", 0.0)
        waiting.finished("announced")
        waiting.finished("whole")
        assert waiting.expired(HELD_S + 0.1) == [Release("announced")]

    @pytest.mark.parametrize("how", ["preempted", "ended", "failed"])
    def test_kv_that_is_lost_is_computed(self, how: str) -> None:
        waiting = passed_on(ran=how != "failed")
        add(waiting, "whole")
        if how == "preempted":
            waiting.preempted(["announced"])
        elif how == "failed":
            waiting.inbox.append((0, Failed("k", "prefill is gone")))
        else:
            waiting.finished("announced")
        assert waiting.verdict("whole", 0, 0.0) == PLAIN
        assert waiting.allocated("whole", (7, 8), 0, 0) == [Count("recomputed")]
        assert waiting.finished("whole") == ([], "recomputed")

    def test_an_ordinary_request_holds_nothing(self) -> None:
        waiting = loads()
        add(waiting)
        waiting.inbox.append((0, Ready("k")))
        waiting.verdict("r", 0, 0.0)
        waiting.allocated("r", (3, 4), 0, 39)
        assert not waiting.hold("r", 0.0)
        assert not waiting.hold("a stranger", 0.0)
