import re
from pathlib import Path

import pytest

from pd_contracts.clock_events import CLOCK_EVENTS
from pd_contracts.names import Role
from pd_contracts.records import GpuInfo, GpuSample
from pd_contracts.settings import fields
from pd_monitor.catalog import SERIES, Seen
from pd_monitor.reading import Details, Reading
from pd_monitor.sampler import with_roles
from pd_monitor.settings import Settings

INFO = GpuInfo(index=0, name="board", driver="590", power_limit_w=700.0, memory_bytes=1000)
FULL = GpuSample(
    t=0.0,
    index=0,
    power_w=300.5,
    power_average_w=290.0,
    energy_mj=12_500.0,
    sm_clock_mhz=1980,
    memory_clock_mhz=3201,
    utilization=0.5,
    memory_utilization=0.25,
    temperature_c=45.0,
    memory_used_bytes=600,
    throttle_reasons=0x4 | 0x20,
)


def values(info: GpuInfo, sample: GpuSample, details: Details | None = None) -> dict[tuple[str, ...], float]:
    return {
        (series.name, *labels): value
        for series in SERIES
        for labels, value in series.values(Seen(info, sample, details or Details()))
        if value is not None
    }


def test_a_full_sample_becomes_series_in_base_units() -> None:
    got = values(INFO, FULL)
    events = {key[1]: got.pop(key) for key in list(got) if key[0] == "pd_gpu_clock_event_active"}

    assert got == {
        ("pd_gpu_info", "board", "590"): 1.0,
        ("pd_gpu_power_watts", "instant"): 300.5,
        ("pd_gpu_power_watts", "average"): 290.0,
        ("pd_gpu_energy_joules_total",): 12.5,
        ("pd_gpu_clock_hertz", "sm"): 1.98e9,
        ("pd_gpu_clock_hertz", "memory"): 3.201e9,
        ("pd_gpu_utilization_ratio",): 0.5,
        ("pd_gpu_memory_utilization_ratio",): 0.25,
        ("pd_gpu_temperature_celsius",): 45.0,
        ("pd_gpu_memory_used_bytes",): 600,
        ("pd_gpu_memory_size_bytes",): 1000,
        ("pd_gpu_power_limit_watts",): 700.0,
    }
    assert {name for name, active in events.items() if active} == {"sw_power_cap", "sw_thermal"}
    assert set(events) == set(CLOCK_EVENTS)


def test_what_is_unknown_has_no_series_and_a_real_zero_has_one() -> None:
    got = values(GpuInfo(index=0, name="bare"), GpuSample(t=0.0, index=0, utilization=0.0))

    assert got == {("pd_gpu_info", "bare", ""): 1.0, ("pd_gpu_utilization_ratio",): 0.0}


def test_a_board_that_tells_its_role_is_believed_before_the_settings() -> None:
    reading = Reading(
        (INFO, GpuInfo(index=1, name="other", role=Role.COMBINED)),
        (FULL, GpuSample(t=0.0, index=1, role=Role.COMBINED)),
    )

    got = with_roles(reading, {0: Role.PREFILL, 1: Role.DECODE})

    assert [info.role for info in got.gpus] == [Role.PREFILL, Role.COMBINED]
    assert [sample.role for sample in got.samples] == [Role.PREFILL, Role.COMBINED]


@pytest.fixture(name="readme", scope="module")
def _readme() -> str:
    return (Path(__file__).parents[3] / "docs" / "monitor.md").read_text()


def test_the_readme_names_every_series_and_no_other(readme: str) -> None:
    assert set(re.findall(r"\bpd_gpu_\w+", readme)) == {series.name for series in SERIES}


def test_the_readme_names_every_setting(readme: str) -> None:
    assert {field.variable for field in fields(Settings)} <= set(re.findall(r"`([A-Z_]+)`", readme))
