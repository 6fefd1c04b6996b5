"""Stations of `pd_connector` on real sockets: KV arrives whole, and an engine that dies, hangs or restarts affects only its own keys, at once.

Everything is done over `tcp`, and over `nccl` with a library that moves the bytes in the host's memory.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support.connector_nccl import FakeNccl
from support.connector_station import PAGE_BLOCKS, ToyEngine

from pd_connector.core.orders import Computed, Event, Failed, Load, Near, Order, Ready
from pd_connector.memory.pages import HOST, Memory
from pd_connector.net.channel import Channel
from pd_connector.net.transport import Invitation, Site, TransportError, Writer
from pd_connector.settings import Debug, Settings
from pd_connector.wire.frames import frame
from pd_connector.wire.messages import Hello, Message, Ping
from pd_contracts.free_ports import free_ports

QUICK = Settings(ping_s=0.1, dead_after_s=2, hello_timeout_s=2, load_timeout_s=30, put_timeout_s=5)
AT_ONCE_S = 10  # far less than it takes until a load is given up, and enough for a busy machine
TESTS = Path(__file__).parents[1]


@pytest.fixture(name="nccl", params=["tcp", "nccl"])
def _nccl(request: pytest.FixtureRequest) -> FakeNccl | None:
    return FakeNccl() if request.param == "nccl" else None


ONLY_TCP = pytest.mark.parametrize("nccl", ["tcp"], indirect=True)


@pytest.fixture
def engine(nccl: FakeNccl | None) -> Iterator[Callable[..., ToyEngine]]:
    """Makes engines that end with the test."""
    made: list[ToyEngine] = []

    def make(**fields: Any) -> ToyEngine:
        made.append(ToyEngine(**{"settings": QUICK, "nccl": nccl, **fields}))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    left = [
        thread.name for thread in threading.enumerate() if thread.name.startswith("pd-") and "dial" not in thread.name
    ]
    deadline = time.monotonic() + 20
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [name for name in left if name in {thread.name for thread in threading.enumerate()}]
    assert left == []
    assert nccl is None or nccl.alive == 0


class Steps:
    """A prefill and a decode engine that waits within its steps, connected; each step of prefill has four layers."""

    def __init__(self, engine: Callable[..., ToyEngine], soon_wait_ms: float, *, follows: bool = False) -> None:
        self.p = engine()
        self.d = engine(settings=msgspec.structs.replace(QUICK, soon_wait_ms=soon_wait_ms, soon_transports=("tcp",)))
        self.p.prefill("before.x", [50], self.d.address)
        self.d.expect("before.x", self.p.address)
        self.d.until("before.x", Ready)
        assert self.d.load("before.x", [50])
        self.order = Computed("k.x", 0, tuple(range(6)), last=True, early=not follows)
        self._follows = follows

    def begin(self) -> None:
        self.d.expect("k.x", self.p.address, follows=self._follows)
        self.p.begin("k.x", 6, self.d.address)
        self.p.fill("k.x", 0, list(range(6)))
        for share in (0.25, 0.5, 0.75):
            self.p.station.after_some_layers([self.order], share, share + 0.25)

    def end(self) -> None:
        if self.order.early:
            self.p.station.after_last_layer([self.order])
        self.p.station.after_step([self.order], sent=self.order.early)
        self.p.end("k.x")

    def load(self) -> bool:
        return not self.d.station.before_step([Load("k.x", "k.x", tuple(range(10, 16)), 0, soon=True)])


@ONLY_TCP
@pytest.mark.parametrize("follows", [False, True], ids=["KV first", "with prefill's token"])
def test_a_step_waits_for_kv_that_prefill_has_foreseen(engine: Callable[..., ToyEngine], *, follows: bool) -> None:
    steps = Steps(engine, 60_000, follows=follows)
    steps.begin()
    near = steps.d.until("k.x", Near)
    assert 0 <= time.monotonic() - near.at < AT_ONCE_S
    loaded: list[bool] = []
    thread = threading.Thread(target=lambda: loaded.append(steps.load()))
    thread.start()
    time.sleep(0.05)
    assert loaded == [], "it waits"
    steps.end()
    thread.join(AT_ONCE_S)
    assert loaded == [True]
    assert steps.d.holds("k.x", list(range(10, 16)))
    assert steps.d.until("k.x", Ready).token in ({7} if follows else {7, None})
    rest(steps.p, steps.d)


@ONLY_TCP
@pytest.mark.parametrize("why", ["time", "prefill aborts", "prefill ends"])
def test_a_step_does_not_wait_for_ever(engine: Callable[..., ToyEngine], why: str) -> None:
    steps = Steps(engine, 50 if why == "time" else 60_000)
    steps.begin()
    steps.d.until("k.x", Near)
    if why == "prefill aborts":
        threading.Timer(0.05, steps.p.end, ("k.x",), {"token": None}).start()
    elif why == "prefill ends":
        threading.Timer(0.05, steps.p.stop).start()
    begun = time.monotonic()
    assert steps.load() is False
    assert time.monotonic() - begun < AT_ONCE_S
    if why == "time":
        steps.end()  # what comes now is of no use
    rest(steps.d, *([] if why == "prefill ends" else [steps.p]))


@ONLY_TCP
def test_kv_is_not_announced_before_its_time(engine: Callable[..., ToyEngine]) -> None:
    steps, due = Steps(engine, 60_000), time.monotonic() + 0.2
    steps.d.expect("k.x", steps.p.address)
    steps.p.begin("k.x", 6, steps.d.address)
    forecast: Any = SimpleNamespace(told=False, passed=lambda *_shares: due)
    steps.p.station.outgoing._look(forecast, ["k.x"], (0.5, 1), None)
    assert steps.d.until("k.x", Near).at >= due
    steps.p.end("k.x", token=None)
    rest(steps.p, steps.d)


@ONLY_TCP
def test_what_comes_with_prefills_token_is_announced_later(engine: Callable[..., ToyEngine]) -> None:
    """A token is sampled after the last layer, and its KV is copied after that."""
    leads = []
    for follows in (False, True):
        steps = Steps(engine, 60_000, follows=follows)
        steps.begin()
        leads.append(steps.p.station.outgoing._forecast._lead_s)
        steps.end()
        assert steps.load()
        rest(steps.p, steps.d)
    assert leads == [pytest.approx(0.003), pytest.approx(0.001)]


@ONLY_TCP
def test_an_engine_that_does_not_wait_within_steps_hears_of_nothing(engine: Callable[..., ToyEngine]) -> None:
    steps = Steps(engine, 0)
    steps.begin()
    steps.end()
    steps.d.until("k.x", Ready)
    assert not [event for event in steps.d.events if isinstance(event, Near)]


@ONLY_TCP
def test_kv_that_is_sent_before_its_step_ends(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(), engine()
    p.prefill("before.x", [50], d.address)  # so that they are connected
    d.expect("before.x", p.address)
    d.until("before.x", Ready)
    p.copier.gathered = 0
    d.expect("k.x", p.address)
    p.begin("k.x", 6, d.address)
    p.fill("k.x", 0, list(range(6)))
    step: list[Order] = [Computed("k.x", 0, tuple(range(6)))]
    p.station.after_last_layer(step)
    d.until("k.x", Ready)
    assert (p.copier.gathered, p.copier.joined) == (1, 0)

    p.station.after_step(step, sent=True)
    assert (p.copier.gathered, p.copier.joined) == (1, 1)  # not gathered again; later steps may write to the blocks
    p.end("k.x")
    assert d.load("k.x", [10, 11, 12, 13, 14, 15])
    assert d.holds("k.x", [10, 11, 12, 13, 14, 15])


class OtherNode:
    """A transport that decode offers and that does not reach as far as prefill."""

    name, kind = "vmm", HOST

    def open(self, invitation: Invitation, staging: Memory) -> Writer:  # noqa: ARG002  the interface
        raise TransportError("vmm: decode is on another node")

    def listen(self, site: Site) -> dict[str, str]:  # noqa: ARG002  the interface
        return {}

    def adopt(self, session: str, sock: socket.socket | None) -> None: ...

    def end(self, session: str) -> None: ...

    def stop(self) -> None: ...


class Remote:
    """A prefill engine in a process of its own, which can be killed or stopped."""

    def __init__(self, port: int, nccl: FakeNccl | None, **settings: Any) -> None:
        values = {"ping_s": QUICK.ping_s, "dead_after_s": QUICK.dead_after_s, **settings}
        command = [sys.executable, "-m", "support.connector_station", str(port), json.dumps(values)]
        command += [str(nccl.path)] if nccl is not None else []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def do(self, what: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, "with": arguments}) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def remote(nccl: FakeNccl | None) -> Iterator[Callable[..., Remote]]:
    made: list[Remote] = []

    def make(port: int = 0, **settings: Any) -> Remote:
        made.append(Remote(port or free_ports(1)[0], nccl, **settings))
        return made[-1]

    yield make
    for one in made:
        one.process.send_signal(signal.SIGCONT)
        one.kill()


def rest(*engines: ToyEngine, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not all(engine.at_rest() for engine in engines):
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.01)


@pytest.mark.parametrize("first", [True, False], ids=["decode asked first", "official order"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "named late"])
@pytest.mark.parametrize("count", [1, PAGE_BLOCKS, PAGE_BLOCKS + 1, 60])
def test_kv_arrives_whole(engine: Callable[..., ToyEngine], count: int, *, named: bool, first: bool) -> None:
    p, d = engine(), engine()
    source, target = list(range(count)), list(range(100, 100 + count))
    if first:
        d.expect("k", p.address)
    p.prefill("k", source, d.address if named else None, held=not named)
    if not first:
        d.expect("k", p.address)

    d.until("k", Ready)
    assert d.load("k", target)
    assert d.holds("k", target)
    rest(p, d)
    assert p.station.outgoing.released() == (set() if named else {"k"})


def test_the_token_follows(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(), engine()
    d.expect("k", p.address, follows=True)
    p.begin("k", 2, d.address)
    p.compute("k", 0, [0, 1])
    time.sleep(0.2)
    assert not any(isinstance(event, Ready) for event in d.events)
    p.end("k", token=12345)

    assert d.until("k", Ready).token == 12345


@ONLY_TCP
def test_a_request_hears_of_its_kv_before_prefill_hears_of_new_room(
    engine: Callable[..., ToyEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    p, d = engine(), engine()
    # Prefill has all its credit before: what it asks for because it has none would take the place of what is looked for.
    p.prefill("before", [1], d.address)
    d.expect("before", p.address)
    d.until("before", Ready)
    said: list[str] = []
    send, report = Channel.send, d.station.incoming._report

    def sent(channel: Channel, messages: Iterable[Message], now: float) -> None:
        messages = list(messages)
        said.extend(type(message).__name__ for message in messages)
        send(channel, messages, now)

    def reported(event: Event) -> None:
        said.append(type(event).__name__)
        report(event)

    monkeypatch.setattr(Channel, "send", sent)
    monkeypatch.setattr(d.station.incoming, "_report", reported)
    d.expect("k", p.address)
    p.prefill("k", [0], d.address)
    d.until("k", Ready)

    with d.station.plant.lock:  # the part that made it ready has been dealt with
        assert "Credit" in said[said.index("Ready") :]


def test_many_keys_between_four_engines_at_once(engine: Callable[..., ToyEngine]) -> None:
    engines = [engine(landing=6, staging=3) for _ in range(4)]
    generator, failures = random.Random(5), list[str]()

    def decode(key: str, p: ToyEngine, d: ToyEngine, blocks: list[int]) -> None:
        d.expect(key, p.address)
        if d.drain(key, blocks, seconds=30) or not d.holds(key, blocks):
            failures.append(key)

    for batch in range(15):
        threads = []
        for place in range(4):  # each with blocks of its own on either side
            p, d = generator.sample(engines, 2)
            key, count = f"{batch}-{place}.x", generator.randint(1, 20)
            source, target = (list(range(start, start + count)) for start in (20 * place, 100 + 20 * place))
            threads.append(threading.Thread(target=decode, args=(key, p, d, target)))
            threads[-1].start()
            p.prefill(key, source, d.address, held=True)
        for thread in threads:
            thread.join(30)
        rest(*engines)

    assert failures == []


def test_kv_larger_than_all_memory_on_the_way(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(staging=1), engine(landing=2)
    blocks = list(range(100))
    p.prefill("k", blocks, d.address, held=True)
    d.expect("k", p.address)

    assert d.drain("k", blocks) == set()
    assert d.holds("k", blocks)
    rest(p, d)


def test_zeros_on_purpose_are_noticed(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(settings=Settings(debug=Debug(zero=True))), engine()
    d.expect("k", p.address)
    p.prefill("k", [0, 1], d.address)
    d.until("k", Ready)

    assert d.load("k", [5, 6])
    assert not d.holds("k", [5, 6])


def test_checksums_fit(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(settings=Settings(debug=Debug(checksum=True))), engine()
    d.expect("k", p.address)
    p.prefill("k", list(range(9)), d.address)

    d.until("k", Ready)
    assert d.load("k", list(range(9)))
    assert d.holds("k", list(range(9)))


class TestWhoDies:
    def test_prefill_killed_in_mid_transfer(
        self, engine: Callable[..., ToyEngine], remote: Callable[..., Remote]
    ) -> None:
        slow, quick, d = remote(debug={"delay_s": 0.4}), engine(), engine()
        for key in ("lost", "also lost"):
            d.expect(key, slow.address)
            slow.do("prefill", key=key, blocks=list(range(40)), to=d.address)
        d.expect("kept", quick.address)
        time.sleep(0.3)
        slow.kill()
        for key in ("lost", "also lost"):
            assert "prefill at" in d.until(key, Failed, AT_ONCE_S).reason
        quick.prefill("kept", [0, 1, 2], d.address)

        d.until("kept", Ready)
        assert d.load("kept", [7, 8, 9])
        assert d.holds("kept", [7, 8, 9])
        rest(d)

    def test_prefill_killed_before_it_sent_anything(
        self, engine: Callable[..., ToyEngine], remote: Callable[..., Remote]
    ) -> None:
        p, d = remote(), engine()
        d.expect("k", p.address)
        p.do("begin", key="k", count=4, to=d.address)
        time.sleep(0.3)
        p.kill()

        d.until("k", Failed, AT_ONCE_S)
        rest(d)

    def test_decode_dies_with_kv_on_its_way(self, engine: Callable[..., ToyEngine]) -> None:
        p, d, other = engine(staging=4), engine(landing=2), engine()
        p.prefill("dead", list(range(40)), d.address, held=True)
        time.sleep(0.2)
        assert not p.at_rest(), "decode has no room"
        d.stop()
        p.prefill("alive", [50, 51], other.address)
        other.expect("alive", p.address)

        other.until("alive", Ready)
        assert other.load("alive", [0, 1])
        rest(p, other)
        assert p.station.outgoing.released() == {"dead"}

    def test_a_decode_that_is_not_there(self, engine: Callable[..., ToyEngine]) -> None:
        p = engine()
        p.prefill("k", [0, 1], f"127.0.0.1:{free_ports(1)[0]}", held=True)

        rest(p)
        assert p.station.outgoing.released() == {"k"}

    def test_a_prefill_that_is_not_there(self, engine: Callable[..., ToyEngine]) -> None:
        d = engine()
        d.expect("k", f"127.0.0.1:{free_ports(1)[0]}")

        assert "cannot be reached" in d.until("k", Failed, AT_ONCE_S).reason
        rest(d)

    def test_decode_restarts_on_the_same_port(self, engine: Callable[..., ToyEngine]) -> None:
        p, d = engine(), engine()
        p.prefill("before", [0, 1], d.address)
        d.expect("before", p.address)
        d.until("before", Ready)
        port = int(d.address.rpartition(":")[2])
        d.stop()
        again = engine(port=port)
        again.expect("before", p.address)
        assert "restart" in again.until("before", Failed, AT_ONCE_S).reason
        again.expect("after", p.address)
        p.prefill("after", [2, 3], again.address)

        again.until("after", Ready)
        assert again.load("after", [4, 5])
        assert again.holds("after", [4, 5])
        rest(p, again)

    def test_prefill_restarts_on_the_same_port(
        self, engine: Callable[..., ToyEngine], remote: Callable[..., Remote]
    ) -> None:
        d, [port] = engine(), free_ports(1)
        for key in ("before", "after"):
            p = remote(port)
            d.expect(key, p.address)
            p.do("prefill", key=key, blocks=[0, 1, 2], to=d.address)
            d.until(key, Ready)
            assert d.load(key, [4, 5, 6])
            assert d.holds(key, [4, 5, 6])
            p.kill()
        rest(d)

    def test_prefill_hangs(self, engine: Callable[..., ToyEngine], remote: Callable[..., Remote]) -> None:
        p, d = remote(), engine()
        d.expect("k", p.address)
        p.do("begin", key="k", count=4, to=d.address)
        time.sleep(0.3)
        p.process.send_signal(signal.SIGSTOP)

        assert "silent" in d.until("k", Failed, AT_ONCE_S).reason
        p.process.send_signal(signal.SIGCONT)
        # What it still believes to have to send costs nobody anything.
        p.do("compute", key="k", first=0, blocks=[0, 1, 2, 3])
        key = self.next_that_arrives(p, d)
        assert d.load(key, [0, 1])
        assert d.holds(key, [0, 1])
        rest(d)

    @staticmethod
    def next_that_arrives(p: Remote, d: ToyEngine) -> str:
        """What prefill begins before it has seen that it was given up is lost, too."""
        for number in range(20):
            key = f"next{number}"
            d.expect(key, p.address)
            p.do("prefill", key=key, blocks=[4, 5], to=d.address)
            try:
                d.until(key, Ready, 1)
            except AssertionError:
                d.drop(key)
            else:
                return key
        raise AssertionError


class TestWhoLeaves:
    def test_a_request_may_be_dropped_before_its_kv_came(self, engine: Callable[..., ToyEngine]) -> None:
        p, d = engine(), engine()
        d.expect("k", p.address)
        p.begin("k", 4, d.address)
        time.sleep(0.1)
        d.drop("k")
        time.sleep(0.1)
        p.compute("k", 0, [0, 1, 2, 3])
        p.end("k")

        rest(p, d)

    def test_a_request_may_be_dropped_in_mid_transfer(self, engine: Callable[..., ToyEngine]) -> None:
        p, d = engine(settings=Settings(debug=Debug(delay_s=0.05)), staging=2), engine()
        d.expect("k", p.address)
        p.prefill("k", list(range(60)), d.address, held=True)
        time.sleep(0.15)
        d.drop("k")

        rest(p, d)
        assert p.station.outgoing.released() == {"k"}


class TestWhoDoesNotFit:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            (
                {"schema": {"model": "another"}},
                "model is another there and toy here|model is toy there and another here",
            ),
            ({"sends": False}, "kv_consumer"),
        ],
    )
    def test_decode_hears_why_it_is_refused(
        self, engine: Callable[..., ToyEngine], fields: dict[str, Any], reason: str
    ) -> None:
        p, d = engine(**fields), engine()
        d.expect("k", p.address)

        failed = d.until("k", Failed, AT_ONCE_S)
        assert any(part in failed.reason for part in reason.split("|"))

    def test_prefill_hears_why_it_is_refused(self, engine: Callable[..., ToyEngine]) -> None:
        p, d = engine(), engine(takes=False)
        p.prefill("k", [0], d.address, held=True)

        rest(p)
        assert p.station.outgoing.released() == {"k"}
        assert any(name == "refused" for name, _, _ in (p.station.plant.stats.take() or {})["counts"])

    @pytest.mark.parametrize(
        "noise",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 100,
            b"\0\0\0\5hello",
            frame(Ping()),
            frame(Hello(version=99, purpose="push", boot="x", address="x:1")),
            frame(Hello(purpose="push", boot="x", address="x:1", rank=5, schema={"model": "toy"})),
            frame(Hello(purpose="data", boot="x", address="x:1", session="nobody's")),
            b"",
        ],
    )
    def test_strangers_at_the_port_disturb_nobody(self, engine: Callable[..., ToyEngine], noise: bytes) -> None:
        p, d = engine(), engine()
        host, port = d.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(noise)
            sock.settimeout(20)
            while sock.recv(4096):  # until it is thrown out
                pass
        d.expect("k", p.address)
        p.prefill("k", [0, 1], d.address)

        d.until("k", Ready)


@ONLY_TCP
def test_a_better_transport_that_does_not_work_is_named_and_counted(
    engine: Callable[..., ToyEngine], caplog: pytest.LogCaptureFixture
) -> None:
    p, d = (engine(better=(OtherNode(),)) for _ in range(2))
    p.prefill("k", [1, 2], d.address)
    d.expect("k", p.address)
    d.until("k", Ready)

    assert d.load("k", [5, 6])
    assert d.holds("k", [5, 6])
    assert "over tcp, because vmm: decode is on another node" in caplog.text
    found = p.station.plant.stats.take() or {}
    assert ["fell_back", "vmm", 1] in found["counts"]
    assert ["peer_up", f"{d.address} tcp", 1] in found["gauges"], "metrics say which transport it is"


@ONLY_TCP
def test_between_equal_engines_the_first_transport_is_taken(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(), engine(better=(OtherNode(),))
    p.prefill("k", [1, 2], d.address)
    d.expect("k", p.address)
    d.until("k", Ready)

    found = p.station.plant.stats.take() or {}
    assert ["peer_up", f"{d.address} tcp", 1] in found["gauges"], "what only one of them has is not tried"
    assert not [name for name, *_ in found["counts"] if name == "fell_back"]


@ONLY_TCP
def test_a_copy_may_take_longer_than_a_greeting(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(), engine()
    p.prefill("k", [1], d.address)
    d.expect("k", p.address)
    d.until("k", Ready)
    writer: Any = p.station.outgoing._links[d.address].writer

    assert writer._sock.gettimeout() == QUICK.put_timeout_s != QUICK.hello_timeout_s
