"""Prefill and decode against each other, in every order of events that hypothesis finds: no wrong KV, nothing left behind, no request waits forever.

The state machine finds short sequences and shows the shortest one that fails. The random walks go deeper: hundreds of events each, with the likelihood
that each kind has in a real deployment.
"""

import functools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from support.connector_world import KIND, DecodeEngine, Network, PrefillEngine

from pd_connector.settings import Settings

COPIES = ("begin beside", "finish beside", "begin puts", "finish puts", "collect")
LANDINGS = ("drain", "release", "feed", "look", "end step")
SETTINGS = Settings(
    load_timeout_s=30, queue_timeout_s=60, early_s=60, keep_s=40, send_timeout_s=50, ping_s=1, dead_after_s=5
)


class Exchange(RuleBasedStateMachine):
    """Two prefill and two decode engines with little memory each."""

    requests: Bundle[str] = Bundle("requests")

    @initialize(
        staging=st.integers(1, 6), landing=st.integers(1, 8), page_blocks=st.integers(1, 3), blocks=st.integers(12, 40)
    )
    def start(self, staging: int, landing: int, page_blocks: int, blocks: int) -> None:
        self.prefills = [
            PrefillEngine(f"p{i}:1", SETTINGS, staging=staging, page_blocks=page_blocks, blocks=blocks)
            for i in range(2)
        ]
        self.decodes = [DecodeEngine(f"d{i}:1", SETTINGS, landing=landing, page_blocks=page_blocks) for i in range(2)]
        self.network = Network(self.prefills, self.decodes)
        self.count = 0
        self.where: dict[str, tuple[PrefillEngine, DecodeEngine, int, bool]] = {}
        self.prefilling: set[str] = set()
        self.decoding: set[str] = set()
        self.asked: set[str] = set()

    @rule(
        target=requests,
        prefill=st.integers(0, 1),
        decode=st.integers(0, 1),
        tokens=st.integers(1, 40),
        named=st.booleans(),
        follows=st.booleans(),
        first=st.booleans(),
    )
    def request(self, prefill: int, decode: int, tokens: int, *, named: bool, follows: bool, first: bool) -> str:
        self.count += 1
        name = f"r{self.count}"
        p, d = self.prefills[prefill], self.decodes[decode]
        self.where[name] = (p, d, tokens, follows)
        if first:
            self.ask(name)
        p.request(name, f"k{self.count}.x", d.address if named else None, tokens)
        self.prefilling.add(name)
        return name

    @rule(name=requests)
    def ask(self, name: str) -> None:
        if name in self.asked:
            return
        p, d, tokens, follows = self.where[name]
        self.asked.add(name)
        self.decoding.add(name)
        d.request(name, f"k{name[1:]}.x", p.address, tokens, follows=follows)

    @rule(name=requests, tokens=st.integers(1, 24))
    def compute(self, name: str, tokens: int) -> None:
        p, _, total, _ = self.where[name]
        if name in self.prefilling and p.step(name, tokens) and p.computed[name] == total:
            p.end(name, aborted=False)
            self.prefilling.discard(name)

    @rule(name=requests)
    def preempt(self, name: str) -> None:
        p = self.where[name][0]
        if name in self.prefilling and p.owned[name]:
            p.preempt(name)

    @rule(name=requests)
    def abort_prefill(self, name: str) -> None:
        if name in self.prefilling:
            self.where[name][0].end(name, aborted=True)
            self.prefilling.discard(name)

    @rule(name=requests, alone=st.booleans())
    def schedule(self, name: str, *, alone: bool) -> None:
        if name in self.decoding:
            self.where[name][1].schedule(name, alone=alone)

    @rule(name=requests)
    def foresee(self, name: str) -> None:
        """Prefill believes that the end is near, and may be wrong."""
        self.where[name][0].sender.soon([f"k{name[1:]}.x"])

    @rule(name=consumes(requests))
    def leave(self, name: str) -> None:
        if name in self.decoding:
            self.where[name][1].leave(name)
            self.decoding.discard(name)
        self.asked.add(name)

    @rule(which=st.integers(0, 50), back=st.booleans(), most=st.integers(1, 4))
    def deliver(self, which: int, most: int, *, back: bool) -> None:
        self.network.collect()
        if self.network.connections:
            connection = self.network.connections[which % len(self.network.connections)]
            for _ in range(most):
                self.network.deliver(connection, back=back)

    @rule(prefill=st.integers(0, 1), what=st.sampled_from(COPIES))
    def copy(self, prefill: int, what: str) -> None:
        engine = self.prefills[prefill]
        {
            "begin beside": engine.begin_beside,
            "finish beside": engine.finish_beside,
            "begin puts": lambda: self.network.begin_puts(engine),
            "finish puts": lambda: self.network.finish_put(engine),
            "collect": engine.collect,
        }[what]()

    @rule(decode=st.integers(0, 1), what=st.sampled_from(LANDINGS))
    def land(self, decode: int, what: str) -> None:
        engine = self.decodes[decode]
        {
            "drain": engine.drain,
            "release": engine.release_one,
            "feed": engine.feed,
            "look": engine.look,
            "end step": engine.end_step,
        }[what]()

    @precondition(lambda self: self.network.connections)
    @rule(which=st.integers(0, 50))
    def cut(self, which: int) -> None:
        self.network.cut(self.network.connections[which % len(self.network.connections)])

    @rule(which=st.integers(0, 50), opener=st.booleans())
    def notice(self, which: int, *, opener: bool) -> None:
        if self.network.connections:
            self.network.notice(self.network.connections[which % len(self.network.connections)], opener=opener)
            self.network.settle_writes()

    @rule(seconds=st.sampled_from([0.1, 3.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.network.advance(seconds)

    @rule()
    def rest(self) -> None:
        self.network.run()

    @invariant()
    def books(self) -> None:
        """Every block is free or somebody's; no request is both held and running."""
        for p in getattr(self, "prefills", []):
            owned = [block for blocks in p.owned.values() for block in blocks]
            assert sorted([*owned, *p.free]) == list(range(len(owned) + len(p.free)))

    def teardown(self) -> None:
        if not hasattr(self, "network"):
            return
        self.finish_everything()
        for _ in range(6):
            self.network.run()
            for name in self.decoding:
                self.where[name][1].schedule(name)
            self.network.run()
            self.network.advance(30)
        self.network.run()
        self.check_nothing_left()

    def finish_everything(self) -> None:
        """Who has begun goes on to the end, so that all KV is looked at by somebody."""
        for name in self.where.keys() - self.asked:
            self.ask(name)
        self.network.run()
        for name in list(self.prefilling):
            self.compute(name, 40)
            self.network.run()
            for other in self.decoding:
                self.where[other][1].schedule(other)
            if name in self.prefilling:  # there were no blocks for it
                self.where[name][0].end(name, aborted=True)

    def check_nothing_left(self) -> None:
        for name in self.decoding:
            decode = self.where[name][1]
            assert name in decode.outcome, f"{name} waits forever"
            decode.leave(name)
        self.network.run()
        for p in self.prefills:
            assert p.held == set()
            assert len(p.plan) == 0
            assert len(p.sender) == 0
            assert p.sender.pages(KIND).free == len(p.sender.pages(KIND))
            assert all(peer.staged == 0 for peer in p.sender._peers.values())
        for d in self.decodes:
            counts = d.receiver.counts()
            assert counts["landed"] == counts["loading"] == counts["limbo"] == 0, counts
            assert len(d.receiver) == 0
            assert len(d.loads) == 0
        for connection in self.network.connections:
            if connection.purpose == "push" and connection.open:
                granted = connection.acceptor.receiver._links[connection.number].granted
                assert granted == set(connection.opener.sender._peers[connection.acceptor.address].credit)


def approach(name: str, exchange: Exchange, *, right: bool) -> None:
    """Prefill foresees the end, and decode hears of it before anything else happens."""
    exchange.foresee(name)
    exchange.network.collect()
    for connection in list(exchange.network.connections):
        while exchange.network.deliver(connection, back=False):
            pass
    exchange.schedule(name, alone=True)
    if right:
        exchange.compute(name, 40)
        exchange.network.run()


def walk(seed: int, events: int) -> Exchange:
    """A random walk, and the state that it ended in; everything about it follows from the seed."""
    r = random.Random(seed)
    exchange = Exchange()
    exchange.start(
        staging=r.randint(1, 6),
        landing=r.randint(1, 8) if r.random() < 0.7 else 30,
        page_blocks=r.randint(1, 3),
        blocks=r.randint(12, 40),
    )
    names: list[str] = []

    def request() -> None:
        engines = {"prefill": r.randint(0, 1) * r.randint(0, 1), "decode": r.randint(0, 1)}
        likely = {"named": r.random() < 0.6, "follows": r.random() < 0.3, "first": r.random() < 0.5}
        names.append(str(exchange.request(**engines, tokens=r.randint(1, 40), **likely)))

    def leave() -> None:
        if names:
            exchange.leave(names.pop(r.randrange(len(names))))

    def some(do: Any, *args: Any) -> None:
        if names:
            do(r.choice(names[-6:]), *args)

    kinds: dict[Any, float] = {
        request: 4,
        leave: 1,
        lambda: some(exchange.ask): 4,
        lambda: some(exchange.compute, r.choice((4, 8, 24))): 14,
        lambda: some(exchange.preempt): 2,
        lambda: some(exchange.abort_prefill): 0.5,
        lambda: some(lambda name: exchange.schedule(name, alone=r.random() < 0.5)): 10,
        lambda: some(exchange.foresee): 1,
        lambda: some(functools.partial(approach, exchange=exchange, right=r.random() < 0.5)): 3,
        lambda: exchange.deliver(r.randrange(50), r.randint(1, 4), back=r.random() < 0.5): 30,
        lambda: exchange.copy(r.randint(0, 1), r.choice(COPIES)): 30,
        lambda: exchange.land(r.randint(0, 1), r.choice(LANDINGS)): 12,
        lambda: exchange.network.connections and exchange.cut(r.randrange(50)): 0.6,
        lambda: exchange.notice(r.randrange(50), opener=r.random() < 0.5): 6,
        lambda: exchange.wait(r.choice((0.1, 0.1, 3.0, 25.0))): 0.7,
    }
    for do in r.choices(list(kinds), list(kinds.values()), k=events):
        do()
        exchange.books()
    return exchange


@pytest.mark.parametrize("first_seed", range(0, 400, 100))
def test_long_walks_leave_nothing_behind(first_seed: int) -> None:
    outcomes: Counter[str] = Counter()
    in_time = 0
    for seed in range(first_seed, first_seed + 100):
        try:
            exchange = walk(seed, 400)
            exchange.teardown()
        except BaseException:
            print(f"seed {seed}")  # noqa: T201  walk(seed, 400) shows it again
            raise
        in_time += sum(decode.in_time for decode in exchange.decodes)
        outcomes.update(outcome for decode in exchange.decodes for outcome in decode.outcome.values())
    assert outcomes["loaded"] > 400, f"walks that lead nowhere show nothing: {outcomes}"
    assert in_time > 5, "steps that wait for KV get it"
    assert outcomes["lost"] > 0, f"no step has waited in vain: {outcomes}"


TestExchange: Any = Exchange.TestCase
TestExchange.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
