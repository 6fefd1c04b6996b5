"""`nccl` and its peers that are late, broken, silent or dead: nothing hangs, and only their own keys are lost.

A library with NCCL's calls moves the bytes (fake_nccl.c); the rest is the connector's own. What both transports must do is in test_connector_station.py.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import connector_nccl as fakes
from support.connector_nccl import RECEIVER, SENDER, FakeNccl
from support.connector_station import BLOCK_BYTES, PAGE_BLOCKS, ToyEngine
from support.waiting import until

from pd_connector.core.orders import Failed, Ready
from pd_connector.memory.cumem import CudaError
from pd_connector.memory.pages import HostMemory
from pd_connector.net import doors
from pd_connector.net.nccl import asked, unfit
from pd_connector.net.transport import Site, Transport
from pd_connector.settings import Settings
from pd_connector.wire.messages import Join, ProtocolError, Write
from pd_contracts.free_ports import free_ports

SETTINGS = Settings(ping_s=0.1, dead_after_s=2, hello_timeout_s=2, join_timeout_s=2, put_timeout_s=2)
SOON_S = 10
TESTS = Path(__file__).parents[1]


@pytest.fixture(name="nccl")
def _nccl() -> Iterator[FakeNccl]:
    found = FakeNccl()
    yield found
    for rank in (SENDER, RECEIVER):
        found.fault(rank, fakes.NONE)


@pytest.fixture(name="engine")
def _engine(nccl: FakeNccl) -> Iterator[Callable[..., ToyEngine]]:
    made: list[ToyEngine] = []

    def make(**fields: Any) -> ToyEngine:
        made.append(ToyEngine(**{"settings": SETTINGS, "nccl": nccl, **fields}))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    until(lambda: nccl.alive == 0, 20, "every communicator is aborted")
    assert nccl.strays == []


def send(p: ToyEngine, d: ToyEngine, key: str) -> None:
    d.expect(key, p.address)
    p.prefill(key, list(range(9)), d.address, held=True)


def arrives(p: ToyEngine, d: ToyEngine, key: str) -> None:
    """A key comes whole."""
    send(p, d, key)
    d.until(key, Ready)
    blocks = list(range(100, 109))
    assert d.load(key, blocks)
    assert d.holds(key, blocks)


def over(p: ToyEngine, d: ToyEngine) -> str:
    """The transport between two engines, as metrics show it."""
    found = p.station.plant.stats.gauges("peer_up")
    [name] = [label.split(" ")[1] for label, value in found.items() if value and label.startswith(d.address)]
    return name


def rest(*engines: ToyEngine) -> None:
    until(lambda: all(engine.at_rest() for engine in engines), 20, "nothing is left")


def test_gpus_that_do_not_share_a_folder_take_nccl_and_metrics_say_so(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(), engine()
    arrives(p, d, "k.x")

    assert over(p, d) == "nccl"
    counts = (d.station.plant.stats.take() or {})["counts"]
    assert ["received_bytes", "nccl", 9 * BLOCK_BYTES] in counts


def test_a_copy_of_adjacent_pages_is_one_operation(
    engine: Callable[..., ToyEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    p, d = engine(), engine()
    arrives(p, d, "first.x")
    sizes: list[list[int]] = []
    real = fakes.Nccl.send

    def note(self: Any, runs: list[tuple[int, int]], communicator: int, stream: int) -> None:
        sizes.append([size for _, size in runs])
        real(self, runs, communicator, stream)

    monkeypatch.setattr(fakes.Nccl, "send", note)
    d.expect("k.x", p.address)
    p.prefill("k.x", list(range(3 * PAGE_BLOCKS)), d.address)
    d.until("k.x", Ready)

    assert sizes == [[3 * PAGE_BLOCKS * BLOCK_BYTES]]


class TestWhoDoesNotFit:
    @pytest.mark.parametrize(
        ("prefill", "decode", "reason"),
        [
            ({"gpu": "one"}, {"gpu": "one"}, "both engines are on one GPU"),
            ({"version": 22903}, {}, "decode has NCCL 2.28.9 and this engine 2.29.3"),
        ],
    )
    def test_kv_goes_over_tcp_and_the_reason_is_told(
        self,
        engine: Callable[..., ToyEngine],
        caplog: pytest.LogCaptureFixture,
        prefill: dict[str, Any],
        decode: dict[str, Any],
        reason: str,
    ) -> None:
        version = prefill.pop("version", 0)
        p, d = engine(**prefill, **({"nccl": FakeNccl(version=version)} if version else {})), engine(**decode)
        arrives(p, d, "k.x")

        assert over(p, d) == "tcp"
        assert reason in caplog.text
        assert ["fell_back", "nccl", 1] in (p.station.plant.stats.take() or {})["counts"]

    @pytest.mark.parametrize("rank", [SENDER, RECEIVER])
    @pytest.mark.parametrize("fault", [fakes.NEVER_JOINS, fakes.ERROR_AT_JOIN])
    def test_nccl_that_cannot_be_set_up_costs_only_the_time_until_that_is_known(
        self, engine: Callable[..., ToyEngine], nccl: FakeNccl, caplog: pytest.LogCaptureFixture, rank: int, fault: int
    ) -> None:
        nccl.fault(rank, fault)
        p, d = engine(), engine()
        arrives(p, d, "k.x")

        assert over(p, d) == "tcp"
        assert "over tcp, because nccl: " in caplog.text
        until(lambda: nccl.alive == 0, SOON_S, "the communicators are aborted")
        rest(p, d)

    def test_a_gpu_without_memory_for_a_stream_is_a_reason(
        self, engine: Callable[..., ToyEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        p, d = engine(), engine(gpu="full")
        real = fakes.FakeGpu.stream

        def stream(self: fakes.FakeGpu) -> fakes.FakeStream:
            if self.identity == "full":
                raise CudaError("cuStreamCreateWithPriority", 2, "out of memory")
            return real(self)

        monkeypatch.setattr(fakes.FakeGpu, "stream", stream)
        arrives(p, d, "k.x")

        assert over(p, d) == "tcp"
        assert "takes no more KV of a peer over nccl: " in caplog.text

    def test_a_library_that_is_not_there_or_too_old_is_an_error_with_its_reason(self, tmp_path: Path) -> None:
        with pytest.raises(fakes.NcclError, match="cannot be loaded"):
            fakes.Nccl(str(tmp_path / "libnccl.so.2"))
        with pytest.raises(fakes.NcclError, match=r"2\.16\.5 is too old"):
            fakes.Nccl(str(fakes.library(21605)))

    def test_a_library_that_is_no_nccl_is_an_error(self) -> None:
        with pytest.raises(fakes.NcclError, match="ncclGetVersion"):
            fakes.Nccl("libc.so.6")


def test_setting_nccl_up_may_take_longer_than_a_peer_may_be_silent(
    engine: Callable[..., ToyEngine], nccl: FakeNccl
) -> None:
    patient = Settings(ping_s=0.1, dead_after_s=1, hello_timeout_s=0.5, join_timeout_s=20)
    nccl.fault(RECEIVER, fakes.LATE)
    p, d = engine(settings=patient), engine(settings=patient)
    arrives(p, d, "k.x")

    assert over(p, d) == "nccl"


class TestWhoBreaks:
    @pytest.mark.parametrize("rank", [SENDER, RECEIVER])
    @pytest.mark.parametrize("fault", [fakes.ERROR_LATER, fakes.NEVER_MOVES])
    def test_a_transfer_that_fails_or_hangs_costs_only_that_peers_keys(
        self, engine: Callable[..., ToyEngine], nccl: FakeNccl, rank: int, fault: int
    ) -> None:
        p, d, other = engine(), engine(), engine()
        arrives(p, d, "before.x")
        arrives(p, other, "elsewhere before.x")
        nccl.fault(rank, fault)
        send(p, d, "lost.x")
        d.until("lost.x", Failed, SOON_S)
        nccl.fault(rank, fakes.NONE)
        rest(p, d)
        arrives(p, other, "elsewhere after.x")
        arrives(p, d, "after.x")

        assert over(p, d) == over(p, other) == "nccl"
        assert p.station.outgoing.released() >= {"lost.x"}

    def test_a_slow_peer_delays_no_other(self, engine: Callable[..., ToyEngine], nccl: FakeNccl) -> None:
        p, d, other = engine(), engine(), engine()
        arrives(p, d, "before.x")
        arrives(p, other, "elsewhere before.x")
        nccl.fault(RECEIVER, fakes.NEVER_MOVES)
        send(p, d, "stuck.x")
        time.sleep(0.2)
        nccl.fault(RECEIVER, fakes.NONE)
        begun = time.monotonic()
        arrives(p, other, "quick.x")

        assert time.monotonic() - begun < SETTINGS.put_timeout_s / 2, "it waited for the other peer"
        d.until("stuck.x", Failed, SOON_S)
        rest(p, d, other)

    def test_a_slow_transfer_is_no_fault(self, engine: Callable[..., ToyEngine], nccl: FakeNccl) -> None:
        p, d = engine(), engine()
        arrives(p, d, "before.x")
        nccl.fault(SENDER, fakes.SLOW)
        nccl.fault(RECEIVER, fakes.SLOW)
        arrives(p, d, "slow.x")

        assert nccl.alive == 2, "the same communicators"


class Remote:
    """A prefill engine in a process of its own, whose NCCL has a fault."""

    def __init__(self, port: int, nccl: FakeNccl, fault: int) -> None:
        values = {"ping_s": 0.1, "dead_after_s": 2, "put_timeout_s": 60}
        command = [sys.executable, "-m", "support.connector_station", str(port), json.dumps(values), str(nccl.path)]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "FAKE_NCCL_FAULT": str(fault)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def prefill(self, key: str, to: str) -> None:
        assert self.process.stdin is not None
        order = {"do": "prefill", "with": {"key": key, "blocks": list(range(9)), "to": to}}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_prefill_that_dies_or_hangs_while_decode_receives_is_given_up_and_may_come_again(
    engine: Callable[..., ToyEngine], nccl: FakeNccl, how: signal.Signals
) -> None:
    d, [port] = engine(settings=Settings(ping_s=0.1, dead_after_s=2, put_timeout_s=60)), free_ports(1)
    before = nccl.aborted
    stuck = Remote(port, nccl, fakes.NEVER_MOVES)
    try:
        d.expect("lost.x", stuck.address)
        stuck.prefill("lost.x", d.address)
        until(lambda: nccl.calls.fake_nccl_receiving() > 0, SOON_S, "a receive waits")
        stuck.process.send_signal(how)
        assert "prefill at" in d.until("lost.x", Failed, SOON_S).reason
        until(lambda: nccl.aborted == before + 1, SOON_S, "the receive is aborted")
        rest(d)
    finally:
        stuck.close()
    again = Remote(port, nccl, fakes.NONE)
    try:
        d.expect("k.x", again.address)
        again.prefill("k.x", d.address)
        d.until("k.x", Ready)
        assert d.load("k.x", list(range(9)))
        assert d.holds("k.x", list(range(9)))
    finally:
        again.close()


class TestWhatDecodeIsAskedFor:
    @staticmethod
    def site(granted: set[int]) -> tuple[Site, HostMemory]:
        memory = HostMemory(8, 1000)
        return Site(lambda: memory, lambda _, pages: granted.issuperset(pages), lambda _: None), memory

    def test_runs_are_received_where_their_pages_are(self) -> None:
        site, memory = self.site({2, 3, 5})

        found = asked(Write(pages=[2, 5], sizes=[1500, 1000]), "s", site)
        assert found == [(memory.address(2), 1500), (memory.address(5), 1000)]

    @pytest.mark.parametrize(
        "message",
        [
            Join(id=b""),
            Write(pages=[2], sizes=[]),
            Write(pages=[2], sizes=[2001]),
            Write(pages=[2], sizes=[0]),
            Write(pages=[2], sizes=[-1]),
            Write(pages=[2, 3], sizes=[1001, 1]),
            Write(pages=[4], sizes=[1]),
            Write(pages=[-1], sizes=[1]),
        ],
    )
    def test_anything_else_breaks_the_protocol(self, message: Any) -> None:
        site, _ = self.site({2, 3})

        with pytest.raises(ProtocolError):
            asked(message, "s", site)

    def test_versions_and_gpus_are_compared_before_nccl_is_asked(self) -> None:
        assert unfit({"version": "22809", "gpu": "a"}, 22809, "b") == ""
        assert "one GPU" in unfit({"version": "22809", "gpu": "a"}, 22809, "a")
        assert "2.30.7" in unfit({"version": "23007", "gpu": "a"}, 22809, "b")
        assert "unknown version" in unfit({}, 22809, "b")


def test_what_was_opened_for_an_engine_that_leaves_at_that_moment_is_released(
    engine: Callable[..., ToyEngine], nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_sock: socket.socket, _transport: Transport) -> None:
        raise BrokenPipeError

    p, d = engine(), engine()
    monkeypatch.setattr(doors, "use", broken)
    send(p, d, "k.x")
    until(lambda: nccl.aborted >= 2, SOON_S, "both ends have aborted their communicator")


def test_a_stranger_on_a_data_connection_disturbs_nobody(engine: Callable[..., ToyEngine]) -> None:
    p, d = engine(), engine()
    host, port = d.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b"\0\0\0\5hello")
        arrives(p, d, "k.x")
    assert over(p, d) == "nccl"
    assert threading.active_count() < 100
