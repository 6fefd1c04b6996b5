import io
from pathlib import Path

import pytest
from support.monitor import recorded

from pd_contracts.names import Role
from pd_contracts.records import Clock, GpuHeader, GpuInfo, GpuSample
from pd_monitor.errors import ApiError
from pd_monitor.reading import Reading, Tick
from pd_monitor.recordings import MOST_RECORDINGS, Recording, Recordings, StartRequest

GPUS = (GpuInfo(index=0, name="a", role=Role.PREFILL), GpuInfo(index=1, name="b", role=Role.DECODE))


def tick(t: float, *indices: int) -> Tick:
    samples = tuple(GpuSample(t=t, index=index, role=Role.DECODE, power_w=100.0) for index in indices or (0,))
    return Tick(t, t, t, Reading(GPUS, samples))


def recording(interval_s: float, **request: object) -> Recording:
    header = GpuHeader(clock=Clock.now(), backend="test", simulated=True, interval_s=interval_s, gpus=list(GPUS))
    return Recording(StartRequest("test", **request), header)  # type: ignore[arg-type]


def content(one: Recording) -> list[float]:
    one.file.seek(0)
    _, samples = recorded(one.file.read())
    one.file.close()
    return [sample.t for sample in samples]


def recordings(**given: float) -> Recordings:
    return Recordings(default_interval_s=0.1, longest_s=given.get("longest_s", 3600), changed=lambda: None)


def test_ticks_with_jitter_are_all_taken_at_the_samplers_own_rate() -> None:
    one = recording(0.1)
    times = [10.0, 10.102, 10.199, 10.301, 10.397]

    for t in times:
        one.take(tick(t))

    assert content(one) == times


def test_a_slower_recording_takes_what_it_asked_for_from_a_faster_sampler() -> None:
    one = recording(0.5)

    for number in range(21):
        one.take(tick(10 + number * 0.1))

    assert content(one) == pytest.approx([10.0, 10.5, 11.0, 11.5, 12.0], abs=0.26)


def test_the_last_tick_is_taken_although_none_is_due() -> None:
    one = recording(60)
    one.take(tick(10.0))
    one.take(tick(11.0))

    one.want_last()
    one.take(tick(12.0))

    assert content(one) == [10.0, 12.0]


def test_roles_of_a_recording_override_the_monitors_own() -> None:
    one = recording(0.1, roles={0: Role.COMBINED})

    one.take(tick(10.0, 0, 1))
    one.file.seek(0)
    _, samples = recorded(one.file.read())
    one.file.close()

    assert [sample.role for sample in samples] == [Role.COMBINED, Role.DECODE]


def test_a_full_disk_ends_the_recording_and_nothing_else() -> None:
    one = recording(0.1)
    one.file.close()
    one.file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - the recording holds it, as it does its own

    one.take(tick(10.0))

    assert not one.active
    assert "No space left" in one.ended
    one.file.close()


def test_a_write_cut_short_ends_the_recording() -> None:
    class Short(io.BytesIO):
        def write(self, data: object) -> int:
            return len(bytes(data)) - 1  # type: ignore[call-overload]

    one = recording(0.1)
    one.file.close()
    one.file = Short()

    one.take(tick(10.0))

    assert "full" in one.ended


def test_the_fastest_active_recording_sets_the_rate_and_none_slows_it_down() -> None:
    all_ = recordings()
    assert all_.fastest(1.0) == 1.0

    slow = all_.start(StartRequest("slow", interval_s=10), GPUS, "test", simulated=True)
    fast = all_.start(StartRequest("fast", interval_s=0.2), GPUS, "test", simulated=True)
    assert all_.fastest(1.0) == 0.2

    all_.end(fast)
    assert all_.fastest(1.0) == 1.0
    assert slow.active
    all_.close()


def test_a_forgotten_recording_ends_but_can_still_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    all_ = recordings(longest_s=100)
    one = all_.start(StartRequest("forgotten"), GPUS, "test", simulated=True)
    all_.take(tick(one.started.monotonic + 1))
    assert one.active

    later = one.started.monotonic + 101
    monkeypatch.setattr("time.monotonic", lambda: later)
    all_.take(tick(later))
    all_.take(tick(later + 1))

    assert "MAX_RECORDING_S=100" in one.ended
    assert all_.find(one.id).samples == 2
    all_.close()


def test_the_oldest_forgotten_recording_makes_room_but_a_running_one_never_does() -> None:
    all_ = recordings()
    first, second, *_ = [all_.start(StartRequest(str(n)), GPUS, "test", simulated=True) for n in range(MOST_RECORDINGS)]
    with pytest.raises(ApiError) as refusal:
        all_.start(StartRequest("one too many"), GPUS, "test", simulated=True)
    assert refusal.value.status == 409

    all_.end(second)
    all_.start(StartRequest("fits"), GPUS, "test", simulated=True)

    assert all_.find(first.id).active
    with pytest.raises(ApiError):
        all_.find(second.id)
    all_.close()
