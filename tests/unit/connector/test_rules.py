"""Rules of the protocol one by one, which random orders of events reach too seldom, with the two halves against each other."""

import pytest
from support.connector_world import KIND, DecodeEngine, Network, PrefillEngine

from pd_connector.core.orders import Drop as DropOrder
from pd_connector.core.orders import Expect, Failed
from pd_connector.core.receiver import PARKED_S, PRESSED_EARLY_S
from pd_connector.settings import Settings
from pd_connector.wire.messages import Drop, Fail, Have, Need, Part, ProtocolError, Return, Token, Want

SETTINGS = Settings()
TOKENS = 4  # a block


class Pair:
    """One prefill and one decode engine."""

    def __init__(self, *, staging: int = 8, landing: int = 8, page_blocks: int = 2) -> None:
        self.p = PrefillEngine("p:1", SETTINGS, staging=staging, page_blocks=page_blocks)
        self.d = DecodeEngine("d:1", SETTINGS, landing=landing, page_blocks=page_blocks)
        self.network = Network([self.p], [self.d])

    def prefill(self, name: str, blocks: int, *, to: str | None = "d:1") -> None:
        self.p.request(name, f"{name}.x", to, blocks * TOKENS)
        self.p.step(name, blocks * TOKENS)
        self.p.end(name, aborted=False)

    def ask(self, name: str, blocks: int, *, source: str = "p:1", follows: bool = False) -> None:
        self.d.request(name, f"{name}.x", source, blocks * TOKENS, follows=follows)

    def rest(self, *names: str) -> dict[str, str]:
        for _ in range(3):
            self.network.run()
            for name in names:
                self.d.schedule(name)
        self.network.run()
        return self.d.outcome


@pytest.mark.parametrize("first", [True, False], ids=["decode asked first", "official order"])
@pytest.mark.parametrize("to", ["d:1", None], ids=["named", "named late"])
@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_kv_arrives_whole(blocks: int, to: str | None, *, first: bool, follows: bool) -> None:
    pair = Pair()
    if first:
        pair.ask("r", blocks, follows=follows)
        pair.network.run()
    pair.prefill("r", blocks, to=to)
    if not first:
        pair.network.run()
        pair.ask("r", blocks, follows=follows)

    assert pair.rest("r") == {"r": "loaded"}
    assert pair.p.held == set()
    assert pair.d.loads.token("r") == ((7, "") if follows else (None, ""))


def test_kv_that_is_larger_than_landing_memory_goes_through_it() -> None:
    pair = Pair(landing=2, page_blocks=1)
    pair.ask("r", 9)
    pair.prefill("r", 9)

    assert pair.rest("r") == {"r": "loaded"}


def test_kv_that_is_larger_than_staging_memory_goes_through_it() -> None:
    pair = Pair(staging=1, page_blocks=1)
    pair.ask("r", 9)
    pair.prefill("r", 9)

    assert pair.rest("r") == {"r": "loaded"}


def test_chunks_go_out_while_the_rest_is_computed() -> None:
    pair = Pair()
    pair.p.request("r", "r.x", "d:1", 8 * TOKENS)
    pair.network.run()
    pair.p.step("r", 3 * TOKENS)
    pair.network.run()

    assert pair.d.receiver._arrivals["r.x"].got == 3


def test_credit_that_lies_idle_elsewhere_is_called_back() -> None:
    first, second = (PrefillEngine(f"p{i}:1", SETTINGS, staging=8, page_blocks=1) for i in range(2))
    d = DecodeEngine("d:1", SETTINGS, landing=8, page_blocks=1)
    network = Network([first, second], [d])
    for prefill in (first, second):  # each gets its share of half the pages ahead of need
        prefill.request(f"warm-{prefill.address}", f"warm-{prefill.address}.x", "d:1", 4)
        network.run()
    d.request("big", "big.x", "p1:1", 7 * TOKENS, follows=False)
    second.request("big", "big.x", "d:1", 7 * TOKENS)
    second.step("big", 7 * TOKENS)
    second.end("big", aborted=False)
    network.run()
    network.advance(0.1)
    network.run()
    d.schedule("big")

    assert d.outcome == {"big": "loaded"}


def test_a_slow_decode_does_not_fill_all_of_staging() -> None:
    p = PrefillEngine("p:1", SETTINGS, staging=4, page_blocks=1)
    slow, quick = (DecodeEngine(f"d{i}:1", SETTINGS, landing=1, page_blocks=1) for i in range(2))
    network = Network([p], [slow, quick])
    for name, to in (("warm-slow", "d0:1"), ("warm-quick", "d1:1")):
        p.request(name, f"{name}.x", to, 4)
    network.run()
    for name, to in (("a", "d0:1"), ("b", "d1:1")):
        p.request(name, f"{name}.x", to, 6 * TOKENS)
        p.step(name, 6 * TOKENS)
        p.end(name, aborted=False)
    quick.request("b", "b.x", "p:1", 6 * TOKENS, follows=False)
    for _ in range(3):
        network.run()
        quick.schedule("b")

    assert quick.outcome == {"b": "loaded"}, "although the other one takes nothing"


def test_decode_hears_at_once_of_kv_that_will_not_come() -> None:
    pair = Pair()
    pair.ask("r", 4)
    pair.p.request("r", "r.x", "d:1", 4 * TOKENS)
    pair.p.step("r", 2 * TOKENS)
    pair.network.run()
    pair.p.end("r", aborted=True)

    assert pair.rest("r") == {"r": "computed"}


def test_decode_hears_of_it_even_if_prefill_could_never_reach_it() -> None:
    p = PrefillEngine("p:1", SETTINGS, staging=4, page_blocks=1)
    p.request("r", "r.x", "d:1", 4)
    p.sender.asked(5, Want(key="r.x", to="d:1"), 0.0)
    p.sender.down("d:1", "connection refused")

    assert p.sender.answers[-1] == (5, Fail(key="r.x", reason="connection refused"))


def test_kv_that_nobody_asked_for_is_dropped_in_time() -> None:
    pair = Pair()
    pair.prefill("r", 3, to=None)
    pair.network.run()
    assert pair.p.held == {"r"}
    pair.network.advance(SETTINGS.keep_s + 1)
    pair.network.run()

    assert pair.p.held == set()
    pair.ask("r", 3)
    assert pair.rest("r") == {"r": "computed"}, "and who asks later hears so at once"


def test_kv_of_which_decode_never_hears_is_dropped_in_time() -> None:
    pair = Pair()
    pair.prefill("r", 3)
    pair.network.run()
    assert pair.d.receiver.counts()["landed"] == 2
    pair.network.advance(SETTINGS.early_s + 1)

    assert pair.d.receiver.counts()["landed"] == 0
    pair.ask("r", 3)
    assert pair.rest("r") == {"r": "computed"}


@pytest.mark.parametrize("here", [True, False], ids=["KV is here", "KV comes later"])
def test_kv_of_an_announced_request_goes_to_the_next_request_with_its_key(*, here: bool) -> None:
    pair = Pair()
    pair.ask("r", 3, follows=True)
    if here:
        pair.prefill("r", 3)
    pair.network.run()
    pair.d.leave("r")
    pair.d.outcome.clear()
    pair.ask("r", 3)
    if not here:
        pair.prefill("r", 3)

    assert pair.rest("r") == {"r": "loaded"}
    assert pair.d.receiver.counts()["landed"] == 0


def test_kv_of_an_announced_request_is_dropped_in_time_if_none_follows() -> None:
    pair = Pair()
    pair.ask("r", 3, follows=True)
    pair.prefill("r", 3)
    pair.network.run()
    pair.d.leave("r")
    assert pair.d.receiver.counts()["landed"] == 2
    pair.network.advance(PARKED_S + 0.1)

    assert pair.d.receiver.counts()["landed"] == 0
    assert pair.d.receiver.outcomes == ["aborted"]


def test_while_other_kv_waits_for_room_such_kv_is_dropped_soon() -> None:
    pair = Pair(landing=4, page_blocks=1)
    pair.prefill("early", 4)
    pair.network.run()
    assert pair.d.receiver.counts()["landed"] == 4
    pair.network.advance(PRESSED_EARLY_S + 1)
    assert pair.d.receiver.counts()["landed"] == 4, "without need it stays"

    pair.ask("r", 3)
    pair.prefill("r", 3)
    pair.network.run()
    assert pair.d.receiver.counts()["landed"] == 4, "there is no room for it yet"
    pair.network.advance(0.1)

    assert pair.rest("r") == {"r": "loaded"}
    pair.ask("early", 4)
    assert pair.rest("early")["early"] == "computed"


def test_under_pressure_kv_that_is_asked_for_stays() -> None:
    pair = Pair(landing=4, page_blocks=1)
    for name in ("wanted", "r"):
        pair.ask(name, 4)
        pair.prefill(name, 4)
    pair.network.run()
    pair.network.advance(PRESSED_EARLY_S + 1)

    assert pair.rest("wanted", "r") == {"wanted": "loaded", "r": "loaded"}


def test_a_queue_before_prefill_is_no_loss() -> None:
    pair = Pair()
    pair.p.request("r", "r.x", "d:1", TOKENS)
    pair.ask("r", 1)
    pair.network.run()
    pair.network.advance(SETTINGS.load_timeout_s * 3)
    pair.p.step("r", TOKENS)
    pair.p.end("r", aborted=False)

    assert pair.rest("r") == {"r": "loaded"}


def test_a_prefill_that_never_heard_of_the_key_is_not_waited_for_long() -> None:
    pair = Pair()
    pair.ask("r", 1)
    pair.network.run()
    pair.network.advance(SETTINGS.load_timeout_s + 1)

    assert pair.rest("r") == {"r": "computed"}


def test_nothing_is_sent_of_a_key_that_decode_dropped_before_prefill_began() -> None:
    pair = Pair()
    pair.ask("r", 2)
    pair.network.run()
    pair.d.leave("r")
    pair.network.run()
    pair.prefill("r", 2)
    pair.network.collect()

    assert pair.p.moving == []
    assert pair.p.sender.gather() == []
    assert pair.p.held == set()
    assert len(pair.p.sender) == 0


def test_a_drop_stops_what_is_on_its_way() -> None:
    pair = Pair(landing=2, page_blocks=1)
    pair.prefill("r", 8)
    pair.network.run()
    assert pair.p.held == set()
    pair.ask("r", 8)
    pair.d.leave("r")
    pair.network.run()

    assert len(pair.p.sender) == 0
    assert pair.d.receiver.counts()["landed"] == 0


def test_two_engines_cannot_want_the_same_key() -> None:
    pair = Pair()
    pair.p.request("r", "r.x", "d:1", TOKENS)
    pair.p.sender.asked(9, Want(key="r.x", to="d2:1"), 0.0)

    assert pair.p.sender.answers == [(9, Fail(key="r.x", reason="prefill sends it to another engine"))]


def test_another_prompt_under_the_same_key_is_noticed() -> None:
    pair = Pair()
    pair.p.request("r", "key.aaaa", "d:1", TOKENS)
    pair.p.sender.asked(9, Want(key="key.bbbb", to="d:1"), 0.5)
    assert pair.p.sender.answers == [], "its sibling may still come"
    pair.p.sender.asked(9, Want(key="key.bbbb", to="d:1"), 3.0)

    [(channel, answer)] = pair.p.sender.answers
    assert (channel, type(answer)) == (9, Fail)


def test_what_went_to_the_process_before_a_restart_is_void() -> None:
    d = DecodeEngine("d:1", SETTINGS, landing=4, page_blocks=1)
    d.receiver.expect(Expect("k.x", "p:1", follows=False), 0.0)
    d.receiver.asked("p:1", Have(key="k.x", boot="an earlier one", sent=True), 0.0)

    [event] = d.receiver.events
    assert isinstance(event, Failed)


def test_kv_that_was_sent_must_arrive_soon() -> None:
    d = DecodeEngine("d:1", SETTINGS, landing=4, page_blocks=1)
    d.receiver.expect(Expect("k.x", "p:1", follows=False), 0.0)
    d.receiver.asked("p:1", Have(key="k.x", boot=d.boot, sent=True), 0.0)
    d.receiver.tick(1.0)
    assert d.receiver.events == []
    d.receiver.tick(3.0)

    assert [type(event) for event in d.receiver.events] == [Failed]


class TestWhoBreaksTheRules:
    """Whatever a peer sends, decode's memory stays its own; the connection ends."""

    @pytest.fixture
    def d(self) -> DecodeEngine:
        found = DecodeEngine("d:1", SETTINGS, landing=8, page_blocks=1)
        found.receiver.link_up(1, KIND)
        return found

    def granted(self, d: DecodeEngine) -> list[int]:
        return sorted(d.receiver._links[1].granted)

    def part(self, pages: list[int], **other: int) -> Part:
        fields = {"first": 0, "count": 1, "total": 2, **other}
        return Part(key="k.x", pages=pages, size=100, **fields)

    def test_a_page_that_was_not_granted(self, d: DecodeEngine) -> None:
        for pages in ([7], [99], [-1], []):
            with pytest.raises(ProtocolError):
                d.receiver.hear(1, self.part(pages), 0.0)

    def test_a_page_twice(self, d: DecodeEngine) -> None:
        page = self.granted(d)[0]
        with pytest.raises(ProtocolError):
            d.receiver.hear(1, self.part([page, page], count=2), 0.0)
        d.receiver.hear(1, self.part([page]), 0.0)
        with pytest.raises(ProtocolError):
            d.receiver.hear(1, self.part([page], first=1), 0.0)

    @pytest.mark.parametrize(
        "wrong", [{"first": -1}, {"count": 0}, {"count": 3}, {"first": 2}, {"total": 0}, {"first": 1, "count": 2}]
    )
    def test_blocks_that_are_none_of_the_prompt(self, d: DecodeEngine, wrong: dict[str, int]) -> None:
        with pytest.raises(ProtocolError):
            d.receiver.hear(1, self.part(self.granted(d)[:1], **wrong), 0.0)

    @pytest.mark.parametrize("wrong", [{"first": 0}, {"first": 1, "total": 3}])
    def test_parts_that_do_not_fit_each_other(self, d: DecodeEngine, wrong: dict[str, int]) -> None:
        one, two, *_ = self.granted(d)
        d.receiver.hear(1, self.part([one]), 0.0)
        with pytest.raises(ProtocolError):
            d.receiver.hear(1, self.part([two], **wrong), 0.0)

    def test_pages_given_back_that_it_does_not_have(self, d: DecodeEngine) -> None:
        with pytest.raises(ProtocolError):
            d.receiver.hear(1, Return(pages=[7]), 0.0)

    def test_a_key_over_two_connections(self, d: DecodeEngine) -> None:
        d.receiver.link_up(2, KIND)
        d.receiver.hear(1, self.part(self.granted(d)[:1]), 0.0)
        with pytest.raises(ProtocolError):
            d.receiver.hear(2, self.part(sorted(d.receiver._links[2].granted)[:1], first=1), 0.0)

    def test_messages_that_belong_elsewhere(self, d: DecodeEngine) -> None:
        p = PrefillEngine("p:1", SETTINGS, staging=1, page_blocks=1)

        assert not d.receiver.hear(1, Want(key="k.x", to="d:1"), 0.0)
        assert not d.receiver.asked("p:1", Need(pages=1), 0.0)
        assert not p.sender.hear("d:1", Token(key="k.x", token=1))
        assert not p.sender.asked(1, Need(pages=1), 0.0)

    def test_drops_and_failures_of_unknown_keys_change_nothing(self, d: DecodeEngine) -> None:
        p = PrefillEngine("p:1", SETTINGS, staging=1, page_blocks=1)

        assert p.sender.hear("d:1", Drop(key="k.x"))
        assert d.receiver.hear(1, Fail(key="k.x", reason="?"), 0.0)
        d.receiver.drop(DropOrder("y.x", "aborted"))
        assert d.receiver.events == []
