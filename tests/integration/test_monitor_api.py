"""The monitor's HTTP API over built-in boards whose energy is known exactly."""

import asyncio
import itertools
import time

import pytest
from support.monitor import Client, pick, recorded, running, series

from pd_contracts.names import Role
from pd_contracts.records import GpuSample
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.reading import Reading
from pd_monitor.settings import Settings

SETTINGS = Settings(monitor_interval_s=0.2, prefill_gpus=(0,), decode_gpus=(1,))


async def record(client: Client, seconds: float, **body: object) -> bytes:
    async with client.post("/recordings", json={"name": "test", **body}) as started:
        assert started.status == 201, await started.text()
        id_ = (await started.json())["id"]
    await asyncio.sleep(seconds)
    async with client.delete(f"/recordings/{id_}") as ended:
        assert (ended.status, ended.content_type) == (200, "application/jsonl")
        return await ended.read()


def of_gpu(samples: list[GpuSample], index: int) -> list[GpuSample]:
    return [sample for sample in samples if sample.index == index]


async def test_recorded_energy_is_the_closed_form_of_the_power() -> None:
    boards = WaveBoards([0, 1])
    async with running(boards, SETTINGS) as (client, _):
        _, samples = recorded(await record(client, 2.3))

    for index, wave in boards.waves.items():
        ours = of_gpu(samples, index)
        first, last = ours[0], ours[-1]
        assert first.energy_mj is not None
        assert last.energy_mj is not None
        counted = (last.energy_mj - first.energy_mj) / 1e3
        assert counted == pytest.approx(wave.energy_j(last.t) - wave.energy_j(first.t), abs=1e-3)

        # What a reader makes of the power samples agrees within one sample at full swing for each of the wave's edges.
        points = [(sample.t, sample.power_w or 0.0) for sample in ours]
        integral = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
        widest = max(b[0] - a[0] for a, b in itertools.pairwise(points))
        edges = (last.t - first.t) / (wave.period_s / 2) + 1
        assert integral == pytest.approx(counted, abs=edges * widest * (wave.busy_w - wave.idle_w) / 2)


async def test_a_recording_reaches_past_both_ends_of_what_it_brackets() -> None:
    async with running(WaveBoards([0]), SETTINGS) as (client, _):
        async with client.post("/recordings", json={"name": "bracket"}) as started:
            id_ = (await started.json())["id"]
        begun, ended = time.monotonic(), time.monotonic()
        async with client.delete(f"/recordings/{id_}") as answer:
            header, samples = recorded(await answer.read())

    assert samples[0].t <= begun
    assert samples[-1].t >= ended
    assert header.clock.monotonic <= samples[0].t


async def test_the_sampler_is_fast_while_recording_and_slow_otherwise() -> None:
    async with running(WaveBoards([0]), Settings(monitor_interval_s=0.5)) as (client, monitor):
        ticks: list[float] = []
        monitor.sampler.watchers.append(lambda tick: ticks.append(tick.begun))
        begun = time.monotonic()
        await asyncio.sleep(1.1)
        idle, idle_s = len(ticks), time.monotonic() - begun
        header, samples = recorded(await record(client, 1.0, interval_s=0.05))
        recorded_s = samples[-1].t - samples[0].t

    assert 1 <= idle <= idle_s / 0.5 + 2
    assert header.interval_s == 0.05
    # Ten ticks or more would be missed only on a machine that freezes for half a second.
    assert 10 <= len(samples) <= recorded_s / 0.05 + 5


async def test_header_and_samples_carry_the_recordings_own_roles() -> None:
    async with running(WaveBoards([0, 1]), SETTINGS) as (client, _):
        header, samples = recorded(await record(client, 0.1, roles={"0": "combined"}))

    assert (header.backend, header.simulated) == ("waves", True)
    assert [info.role for info in header.gpus] == [Role.COMBINED, Role.DECODE]
    assert {sample.index: sample.role for sample in samples} == {0: Role.COMBINED, 1: Role.DECODE}


async def test_two_recordings_run_side_by_side() -> None:
    async with running(WaveBoards([0]), SETTINGS) as (client, _):
        fast, slow = await asyncio.gather(record(client, 1.0, interval_s=0.05), record(client, 1.0, interval_s=0.5))

    assert len(recorded(fast)[1]) > 2 * len(recorded(slow)[1])


async def test_the_list_says_what_runs_and_forgets_what_was_fetched() -> None:
    async with running(WaveBoards([0]), SETTINGS) as (client, _):
        async with client.post("/recordings", json={"name": "listed", "interval_s": 0.3}) as started:
            id_ = (await started.json())["id"]
        async with client.get("/recordings") as answer:
            (entry,) = await answer.json()
        async with client.delete(f"/recordings/{id_}") as ended:
            await ended.read()
        async with client.get("/recordings") as answer:
            left = await answer.json()

    assert (entry["id"], entry["name"], entry["interval_s"], entry["ended"]) == (id_, "listed", 0.3, "")
    assert entry["samples"] >= 1
    assert left == []


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b"{}", "name"),
        (b'{"name": ""}', "name"),
        (b'{"name": 7}', "name"),
        (b'{"name": "x", "interval_s": 0}', "interval_s"),
        (b'{"name": "x", "interval_s": 3600}', "interval_s"),
        (b'{"name": "x", "interval": 1}', "interval"),
        (b'{"name": "x", "roles": {"0": "boss"}}', "boss"),
        (b'{"name": "x", "roles": {"-1": "prefill"}}', "roles"),
        (b'{"name": "x", "roles": {"first": "prefill"}}', "roles"),
        (b'{"name": "x", "roles": {"7": "prefill"}}', "there is no GPU 7; the GPUs are 0, 1"),
    ],
)
async def test_a_body_that_makes_no_sense_is_refused_with_a_sentence(body: bytes, complaint: str) -> None:
    async with running(WaveBoards([0, 1]), SETTINGS) as (client, monitor):
        async with client.post("/recordings", data=body) as answer:
            status, refusal = answer.status, await answer.json()
        assert monitor.recordings.active == 0

    assert status == (413 if len(body) > 64 << 10 else 400)
    assert complaint in refusal["error"] or status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("DELETE", "/recordings/unknown", 404), ("GET", "/nothing", 404), ("PUT", "/recordings", 405)],
)
async def test_errors_are_json(method: str, path: str, status: int) -> None:
    async with running(WaveBoards([0]), SETTINGS) as (client, _), client.request(method, path) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]


async def test_a_recording_is_handed_out_once() -> None:
    async with running(WaveBoards([0]), SETTINGS) as (client, _):
        async with client.post("/recordings", json={"name": "once"}) as started:
            path = f"/recordings/{(await started.json())['id']}"

        async def fetch() -> int:
            async with client.delete(path) as answer:
                await answer.read()
                return answer.status

        statuses = await asyncio.gather(fetch(), fetch())
        later = await fetch()

    assert sorted(statuses) == [200, 409]
    assert later == 404


async def test_metrics_are_what_prometheus_reads() -> None:
    async with running(WaveBoards([0, 1]), SETTINGS) as (client, _), client.get("/metrics") as answer:
        page = series(await answer.text())

    assert set(pick(page, "pd_gpu_power_watts", kind="instant", role="prefill")) == {"0"}
    assert set(pick(page, "pd_gpu_power_watts", kind="average", role="decode")) == {"1"}
    assert set(pick(page, "pd_gpu_energy_joules_total")) == {"0", "1"}
    assert pick(page, "pd_exporter_backend_up") == {"": 1.0}
    assert pick(page, "pd_exporter_info", simulated="true", backend="waves") == {"": 1.0}
    assert pick(page, "pd_exporter_call_seconds_count")[""] >= 1
    assert pick(page, "pd_exporter_missed_ticks_total") == {"": 0.0}
    assert pick(page, "pd_exporter_last_success_timestamp_seconds")[""] == pytest.approx(time.time(), abs=30)


async def test_gpus_and_readiness() -> None:
    async with running(WaveBoards([0, 1]), SETTINGS) as (client, _):
        async with client.get("/gpus") as answer:
            gpus = await answer.json()
        async with client.get("/readyz") as answer:
            ready = answer.status, await answer.json()
        async with client.get("/healthz") as answer:
            healthy = answer.status

    assert [(gpu["index"], gpu["role"]) for gpu in gpus] == [(0, "prefill"), (1, "decode")]
    assert ready == (200, {"ready": True, "reason": "", "backend": "waves", "gpus": 2})
    assert healthy == 200


class Stopping:
    """A back end that hangs from a moment on, as a driver can."""

    name = "stopping"
    simulated = True

    def __init__(self) -> None:
        self._boards = WaveBoards([0])
        self.standing = asyncio.Event()
        self.standing.set()

    async def sample(self) -> Reading:
        await self.standing.wait()
        return await self._boards.sample()

    async def close(self) -> None:
        await self._boards.close()


async def test_a_back_end_that_has_stalled_leaves_no_stale_series_and_comes_back() -> None:
    backend = Stopping()
    async with running(backend, Settings(monitor_interval_s=0.05)) as (client, monitor):
        backend.standing.clear()
        await asyncio.sleep(1.3)  # a sample is shown for at least a second
        async with client.get("/metrics") as answer:
            stale = series(await answer.text())
        async with client.get("/readyz") as answer:
            refusal = answer.status, (await answer.json())["reason"]
        async with client.get("/healthz") as answer:
            healthy = answer.status

        backend.standing.set()
        assert await monitor.sampler.tick_begun_after(time.monotonic(), 20)
        async with client.get("/metrics") as answer:
            fresh = series(await answer.text())

    assert not [name for name, _ in stale if name.startswith("pd_gpu_")]
    assert pick(stale, "pd_exporter_backend_up") == {"": 0.0}
    assert pick(stale, "pd_exporter_last_success_timestamp_seconds")[""] < time.time() - 1
    assert refusal[0] == 503
    assert "the back end hangs" in refusal[1]
    assert healthy == 200
    assert set(pick(fresh, "pd_gpu_power_watts", kind="instant")) == {"0"}
    assert pick(fresh, "pd_exporter_missed_ticks_total")[""] >= 10


async def test_a_roles_file_can_be_had_while_the_recording_runs_and_ends_nothing() -> None:
    async with running(WaveBoards([0, 1]), SETTINGS) as (client, _):
        async with client.post("/recordings", json={"name": "files", "interval_s": 0.05}) as started:
            id_ = (await started.json())["id"]
        await asyncio.sleep(0.3)
        async with client.get(f"/recordings/{id_}/decode_gpu_data.json") as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            file = await answer.json()
        async with client.get(f"/recordings/{id_}/other_gpu_data.json") as answer:
            unknown = answer.status, await answer.json()
        async with client.delete(f"/recordings/{id_}") as answer:
            _, samples = recorded(await answer.read())

    ours = of_gpu(samples, 1)
    assert file["role"] == "decode"
    assert {one["index"] for one in file["samples"]} == {1}
    assert 2 <= len(file["samples"]) <= len(ours)
    assert [one["t"] for one in file["samples"]] == [sample.t for sample in ours[: len(file["samples"])]]
    assert unknown[0] == 404
    assert "decode_gpu_data.json" in unknown[1]["error"]
