"""Boards of simulators over HTTP: they answer, disappear, come back, or send invalid data."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pynvml
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.monitor import pick, running, series

from pd_contracts.board import Board
from pd_contracts.names import Role
from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.backends import choose
from pd_monitor.backends.boards import SimulatedBoards
from pd_monitor.reading import WHOLE_GPU, Reading, answered
from pd_monitor.settings import Settings


class FakeSimulator:
    """One board over HTTP, with power 100 W times its index plus one, and faults on request."""

    def __init__(self, index: int, role: Role) -> None:
        self.index = index
        self.role = role
        self.connections: set[object] = set()
        self.body: bytes | None = None
        self.status = 200
        self.delay_s = 0.0
        app = web.Application()
        app.router.add_get("/sim/board", self._answer)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/sim/board"))

    async def _answer(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        await asyncio.sleep(self.delay_s)
        t = time.monotonic()
        board = Board(
            info=GpuInfo(index=self.index, name="sim", uuid=f"SIM-{self.index}", role=self.role),
            sample=GpuSample(t=t, index=0, power_w=100.0 * (self.index + 1), energy_mj=t * 1e5),
        )
        body = msgspec.json.encode(board) if self.body is None else self.body
        return web.Response(body=body, status=self.status, content_type="application/json")


@pytest.fixture(name="prefill")
async def _prefill() -> AsyncIterator[FakeSimulator]:
    simulator = FakeSimulator(0, Role.PREFILL)
    async with simulator.server:
        yield simulator


@pytest.fixture(name="decode")
async def _decode() -> AsyncIterator[FakeSimulator]:
    simulator = FakeSimulator(1, Role.DECODE)
    async with simulator.server:
        yield simulator


@pytest.fixture(name="boards")
async def _boards(prefill: FakeSimulator, decode: FakeSimulator) -> AsyncIterator[SimulatedBoards]:
    boards = SimulatedBoards([prefill.url, decode.url], timeout_s=10, retry_s=0.05)
    yield boards
    await boards.close()


async def sample_until_answered(boards: SimulatedBoards, index: int) -> Reading:
    async with asyncio.timeout(20):
        while True:
            reading = await boards.sample()
            if any(sample.index == index and answered(sample) for sample in reading.samples):
                return reading
            await asyncio.sleep(0.02)


async def test_readings_come_with_the_boards_own_index_role_and_time(boards: SimulatedBoards) -> None:
    begun = time.monotonic()
    reading = await boards.sample()

    assert [(info.index, info.role) for info in reading.gpus] == [(0, Role.PREFILL), (1, Role.DECODE)]
    assert [(sample.index, sample.role, sample.power_w) for sample in reading.samples] == [
        (0, Role.PREFILL, 100.0),
        (1, Role.DECODE, 200.0),
    ]
    for sample in reading.samples:
        assert sample.energy_mj == sample.t * 1e5
        assert begun <= sample.t <= time.monotonic()
    assert reading.problem == ""


async def test_connections_are_kept(boards: SimulatedBoards, prefill: FakeSimulator) -> None:
    for _ in range(5):
        await boards.sample()

    assert len(prefill.connections) == 1


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, None, "status 500"),
        (200, b"<html>", "no board"),
        (200, b'{"info": {}}', "no board"),
        (200, b"\xff", "no board"),
    ],
)
async def test_a_board_that_answers_nonsense_is_an_error_of_its_gpu_alone(
    boards: SimulatedBoards, prefill: FakeSimulator, status: int, body: bytes | None, reason: str
) -> None:
    await boards.sample()
    prefill.status, prefill.body = status, body

    broken, whole = (await boards.sample()).samples

    assert reason in broken.errors[WHOLE_GPU]
    assert (broken.power_w, broken.energy_mj) == (None, None)
    assert answered(whole)


async def test_a_board_that_went_away_comes_back_by_itself(boards: SimulatedBoards, decode: FakeSimulator) -> None:
    await boards.sample()
    decode.status = 503
    gone = (await boards.sample()).samples[1]

    decode.status = 200
    back = await sample_until_answered(boards, 1)

    assert gone.errors == {WHOLE_GPU: "status 503"}
    assert back.samples[1].power_w == 200.0


async def test_a_hung_board_does_not_hold_up_the_others_for_long(prefill: FakeSimulator, decode: FakeSimulator) -> None:
    limit_s = 1.0
    boards = SimulatedBoards([prefill.url, decode.url], timeout_s=limit_s, retry_s=0.05)
    await boards.sample()
    prefill.delay_s = 5
    await boards.sample()  # runs into the time limit, once

    samples = [(await boards.sample()).samples for _ in range(20)]
    await boards.close()

    assert all("no answer in time" in pair[0].errors[WHOLE_GPU] for pair in samples)
    assert len({pair[1].t for pair in samples}) == 20
    assert samples[-1][1].t - samples[0][1].t < 20 * limit_s


async def test_boards_that_start_later_are_found(
    boards: SimulatedBoards, prefill: FakeSimulator, decode: FakeSimulator
) -> None:
    prefill.status = decode.status = 503
    nothing = await boards.sample()

    prefill.status = decode.status = 200
    await sample_until_answered(boards, 0)
    both = await sample_until_answered(boards, 1)

    assert (nothing.gpus, nothing.samples) == ((), ())
    assert prefill.url in nothing.problem
    assert len(both.gpus) == 2
    assert both.problem == ""


async def test_a_closed_port_is_an_error_and_not_a_crash() -> None:
    boards = SimulatedBoards(["http://127.0.0.1:1/sim/board"])
    reading = await boards.sample()
    await boards.close()

    assert reading.gpus == ()
    assert "http://127.0.0.1:1/sim/board" in reading.problem


async def test_the_exporter_drops_a_gone_boards_series_and_counts_the_failures(
    boards: SimulatedBoards, prefill: FakeSimulator
) -> None:
    async with running(boards, Settings(monitor_interval_s=0.05)) as (client, monitor):
        prefill.status = 500
        assert await monitor.sampler.tick_begun_after(time.monotonic(), 20)
        async with client.get("/metrics") as answer:
            page = series(await answer.text())
        async with client.get("/readyz") as answer:
            ready = answer.status

    assert set(pick(page, "pd_gpu_power_watts", kind="instant")) == {"1"}
    assert pick(page, "pd_exporter_read_errors_total", field="gpu")[""] >= 1
    assert ready == 200


async def test_auto_takes_the_boards_where_nvml_finds_nothing(
    monkeypatch: pytest.MonkeyPatch, prefill: FakeSimulator
) -> None:
    monkeypatch.setattr("pynvml.nvmlInit", _no_driver)

    backend = await choose(Settings(sim_boards=(prefill.url,)))
    reading = await backend.sample()
    await backend.close()

    assert (backend.name, backend.simulated) == ("simulated", True)
    assert [info.uuid for info in reading.gpus] == ["SIM-0"]


async def test_simulated_without_boards_is_the_built_in_wave_on_the_configured_gpus() -> None:
    backend = await choose(Settings(monitor_backend="simulated", prefill_gpus=(3,), decode_gpus=(4,)))
    reading = await backend.sample()
    await backend.close()

    assert backend.simulated
    assert [info.index for info in reading.gpus] == [3, 4]


def _no_driver() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
