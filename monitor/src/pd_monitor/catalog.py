"""The table of series: which part of a sample becomes which Prometheus series, in base units. Pure; no registry here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pd_contracts.records import GpuInfo, GpuSample

# NVML's clock-event bits (`nvmlClocksEventReasons`); a name is the label `reason`.
CLOCK_EVENTS: Final = {
    "gpu_idle": 0x1,
    "applications_clocks": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
    "display": 0x100,
}
GPU_LABELS: Final = ("gpu", "uuid", "role")

Values = Iterable[tuple[tuple[str, ...], float | None]]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric. `values` gives (values of `labels`, value) for a GPU; a value of None makes no series."""

    name: str
    help: str
    values: Callable[[GpuInfo, GpuSample], Values]
    labels: tuple[str, ...] = ()
    counter: bool = False


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _clock_events(_: GpuInfo, sample: GpuSample) -> Values:
    if sample.throttle_reasons is None:
        return []
    return [((name,), float(bool(sample.throttle_reasons & bit))) for name, bit in CLOCK_EVENTS.items()]


SERIES: Final = (
    Series(
        "pd_gpu_info",
        "Always 1; says which board it is",
        lambda info, _: [((info.name, info.driver), 1.0)],
        ("name", "driver"),
    ),
    Series(
        "pd_gpu_power_watts",
        "Power draw: instant (NVML field 186) and the board's own average (field 185, about 1 s)",
        lambda _, sample: [(("instant",), sample.power_w), (("average",), sample.power_average_w)],
        ("kind",),
    ),
    Series(
        "pd_gpu_energy_joules_total",
        "The board's energy counter (NVML field 83); only differences mean something",
        lambda _, sample: [((), _scaled(sample.energy_mj, 1e-3))],
        counter=True,
    ),
    Series(
        "pd_gpu_clock_hertz",
        "Clock frequency",
        lambda _, sample: [
            (("sm",), _scaled(sample.sm_clock_mhz, 1e6)),
            (("memory",), _scaled(sample.memory_clock_mhz, 1e6)),
        ],
        ("domain",),
    ),
    Series(
        "pd_gpu_utilization_ratio",
        "Share of the board's last sample period with a kernel running; not how busy the kernel kept it",
        lambda _, sample: [((), sample.utilization)],
    ),
    Series(
        "pd_gpu_memory_utilization_ratio",
        "Share of the board's last sample period in which memory was read or written",
        lambda _, sample: [((), sample.memory_utilization)],
    ),
    Series("pd_gpu_temperature_celsius", "GPU temperature", lambda _, sample: [((), sample.temperature_c)]),
    Series("pd_gpu_memory_used_bytes", "Memory in use", lambda _, sample: [((), sample.memory_used_bytes)]),
    Series("pd_gpu_memory_size_bytes", "Memory of the board", lambda info, _: [((), info.memory_bytes)]),
    Series(
        "pd_gpu_power_limit_watts",
        "The power limit in force when the board was found",
        lambda info, _: [((), info.power_limit_w)],
    ),
    Series(
        "pd_gpu_clock_event_active",
        "1 while the board lowers its clocks for this reason, at the moment of the sample",
        _clock_events,
        ("reason",),
    ),
)
