"""The table of series: which part of a sample becomes which Prometheus series, in base units. Pure; no registry here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pd_contracts.clock_events import CLOCK_EVENTS
from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.reading import Details

GPU_LABELS: Final = ("gpu", "uuid", "role")

Values = Iterable[tuple[tuple[str, ...], float | None]]


@dataclass(frozen=True, slots=True)
class Seen:
    """All known values of one GPU at a scrape; `closure` is `closure.Closure.ratios`."""

    info: GpuInfo
    sample: GpuSample
    details: Details = field(default_factory=Details)
    closure: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric. `values` gives (values of `labels`, value) for a GPU; a value of None makes no series."""

    name: str
    help: str
    values: Callable[[Seen], Values]
    labels: tuple[str, ...] = ()
    counter: bool = False


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _clock_events(gpu: Seen) -> Values:
    bits = gpu.sample.throttle_reasons
    return [] if bits is None else [((name,), float(bool(bits & bit))) for name, bit in CLOCK_EVENTS.items()]


def _power_limit(gpu: Seen) -> Values:
    return [((), gpu.info.power_limit_w if gpu.details.power_limit_w is None else gpu.details.power_limit_w)]


def _processes(gpu: Seen) -> Mapping[int, int | None]:
    return gpu.details.processes or {}


SERIES: Final = (
    Series(
        "pd_gpu_info",
        "Always 1; says which board it is",
        lambda gpu: [((gpu.info.name, gpu.info.driver), 1.0)],
        ("name", "driver"),
    ),
    Series(
        "pd_gpu_pod_info",
        "Always 1; says which container was given the GPU",
        lambda gpu: [(tuple(gpu.info.instance.split("/")), 1.0)] if gpu.info.instance.count("/") == 2 else [],
        ("namespace", "pod", "container"),
    ),
    Series(
        "pd_gpu_power_watts",
        "Power draw: instant (NVML field 186), the board's own average (field 185, about 1 s), and the memory's part of that average",
        lambda gpu: [
            (("instant",), gpu.sample.power_w),
            (("average",), gpu.sample.power_average_w),
            (("memory_average",), gpu.details.memory_power_w),
        ],
        ("kind",),
    ),
    Series(
        "pd_gpu_energy_joules_total",
        "The board's energy counter (NVML field 83); only differences are meaningful",
        lambda gpu: [((), _scaled(gpu.sample.energy_mj, 1e-3))],
        counter=True,
    ),
    Series(
        "pd_gpu_energy_closure_ratio",
        "Integral of the power over the last whole minute, divided by the energy counter's difference, minus 1",
        lambda gpu: [((kind,), ratio) for kind, ratio in gpu.closure.items()],
        ("kind",),
    ),
    Series(
        "pd_gpu_clock_hertz",
        "Clock frequency",
        lambda gpu: [
            (("sm",), _scaled(gpu.sample.sm_clock_mhz, 1e6)),
            (("memory",), _scaled(gpu.sample.memory_clock_mhz, 1e6)),
            (("graphics",), _scaled(gpu.details.graphics_clock_mhz, 1e6)),
        ],
        ("domain",),
    ),
    Series(
        "pd_gpu_utilization_ratio",
        "Share of the board's last sample period in which a kernel ran; not how busy the kernel kept it",
        lambda gpu: [((), gpu.sample.utilization)],
    ),
    Series(
        "pd_gpu_memory_utilization_ratio",
        "Share of the board's last sample period in which memory was read or written",
        lambda gpu: [((), gpu.sample.memory_utilization)],
    ),
    Series("pd_gpu_temperature_celsius", "GPU temperature", lambda gpu: [((), gpu.sample.temperature_c)]),
    Series("pd_gpu_memory_used_bytes", "Memory in use", lambda gpu: [((), gpu.sample.memory_used_bytes)]),
    Series("pd_gpu_memory_size_bytes", "Memory of the board", lambda gpu: [((), gpu.info.memory_bytes)]),
    Series("pd_gpu_power_limit_watts", "The power limit in force", _power_limit),
    Series(
        "pd_gpu_clock_event_active",
        "1 while the board lowers its clocks for this reason, at the moment of the sample",
        _clock_events,
        ("reason",),
    ),
    Series(
        "pd_gpu_clock_event_seconds_total",
        "Time with the clocks lowered for this reason since the driver was loaded; unlike the momentary bit, it counts all of it",
        lambda gpu: [((reason,), seconds) for reason, seconds in gpu.details.throttled_s.items()],
        ("reason",),
        counter=True,
    ),
    Series(
        "pd_gpu_processes",
        "Processes that compute on the GPU",
        lambda gpu: [((), None if gpu.details.processes is None else len(gpu.details.processes))],
    ),
    Series(
        "pd_gpu_process_memory_bytes",
        "GPU memory of a process, by the host's number of it",
        lambda gpu: [((str(pid),), used) for pid, used in _processes(gpu).items()],
        ("pid",),
    ),
    Series(
        "pd_gpu_pcie_bytes_total",
        "Bytes over PCIe as the board counts them; may wrap",
        lambda gpu: [(("tx",), gpu.details.pcie_tx_bytes), (("rx",), gpu.details.pcie_rx_bytes)],
        ("direction",),
        counter=True,
    ),
    Series(
        "pd_gpu_nvlink_bytes_total",
        "Data bytes over all NVLinks of the board",
        lambda gpu: [(("tx",), gpu.details.nvlink_tx_bytes), (("rx",), gpu.details.nvlink_rx_bytes)],
        ("direction",),
        counter=True,
    ),
)
