"""NVML's clock-event bits (`nvmlClocksEventReasons`): why a GPU's clocks are reduced."""

from typing import Final

# Names are those of NVML's constants, shortened; they are the label `reason` of the monitor's series.
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
# Those that mean "slower than asked for", in words; idle, application clocks, sync boost and display do not.
SLOWDOWNS: Final = {
    "sw_power_cap": "power cap",
    "hw_slowdown": "hardware slowdown",
    "sw_thermal": "thermal slowdown (software)",
    "hw_thermal": "thermal slowdown (hardware)",
    "hw_power_brake": "power brake",
}


def slowdowns(bits: int) -> dict[str, str]:
    """The slowdowns that are set in a reading: name to words."""
    return {name: words for name, words in SLOWDOWNS.items() if bits & CLOCK_EVENTS[name]}
