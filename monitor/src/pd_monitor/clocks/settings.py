"""Every setting of `pd-monitor clocks`, with its default."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pd_contracts.names import Role
from pd_monitor.clocks.plan import Wish
from pd_monitor.roles import configured
from pd_monitor.settings import DecodeGpu, DecodeGpus, Gpus, PrefillGpu, PrefillGpus

Megahertz = Annotated[int, msgspec.Meta(gt=0)]
Watts = Annotated[float, msgspec.Meta(gt=0)]


def _mhz(role: str) -> msgspec.Meta:
    return msgspec.Meta(description=f"graphics clock to lock {role} GPUs to, MHz")


def _watts(role: str) -> msgspec.Meta:
    return msgspec.Meta(description=f"power limit of {role} GPUs, W")


class ClockSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Read with `pd_contracts.settings`: ALLOW_CLOCK_CONTROL or `--allow-clock-control`, and so on."""

    allow_clock_control: Annotated[
        bool, msgspec.Meta(description="on: apply, restore and sweep may change clocks and power limits")
    ] = False
    prefill_gpus: PrefillGpus = ()
    decode_gpus: DecodeGpus = ()
    combined_gpus: Annotated[Gpus, msgspec.Meta(description="GPUs of combined engines")] = ()
    prefill_gpu: PrefillGpu = None
    decode_gpu: DecodeGpu = None
    prefill_lock_mhz: Annotated[Megahertz | None, _mhz("prefill")] = None
    decode_lock_mhz: Annotated[Megahertz | None, _mhz("decode")] = None
    combined_lock_mhz: Annotated[Megahertz | None, _mhz("combined")] = None
    prefill_cap_w: Annotated[Watts | None, _watts("prefill")] = None
    decode_cap_w: Annotated[Watts | None, _watts("decode")] = None
    combined_cap_w: Annotated[Watts | None, _watts("combined")] = None
    clocks_allow_pids: Annotated[
        tuple[Annotated[int, msgspec.Meta(gt=0)], ...],
        msgspec.Meta(description="processes that may use the GPUs meanwhile, with their children: the engines"),
    ] = ()
    clocks_state_dir: Annotated[str, msgspec.Meta(min_length=1, description="folder of the journal")] = (
        "/var/lib/pd-monitor"
    )
    clocks_lease_s: Annotated[
        float, msgspec.Meta(ge=0.5, description="seconds without a heartbeat after which a holder loses its changes")
    ] = 5.0
    clocks_hold_s: Annotated[
        float, msgspec.Meta(ge=0, description="apply: seconds until it restores everything; 0 waits for a signal")
    ] = 0.0
    sweep_role: Annotated[Role, msgspec.Meta(description="sweep: whose GPUs are set")] = Role.DECODE
    sweep_actuator: Annotated[
        Literal["lock", "cap"], msgspec.Meta(description="sweep: lock clocks (MHz) or cap power (W)")
    ] = "lock"
    sweep_values: Annotated[
        tuple[Watts, ...], msgspec.Meta(description="sweep: the steps, in MHz or W, between two runs without a limit")
    ] = ()
    sweep_seed: Annotated[int, msgspec.Meta(description="sweep: order of the steps")] = 0
    sweep_settle_s: Annotated[
        float,
        msgspec.Meta(ge=0, description="sweep: wait after a switch, because clocks take up to a second to follow"),
    ] = 2.0
    sweep_out: Annotated[str, msgspec.Meta(min_length=1, description="sweep: folder of the runs and the table")] = (
        "results/clocks"
    )
    log_level: Annotated[str, msgspec.Meta(description="DEBUG, INFO, WARNING, ERROR or CRITICAL")] = "WARNING"

    @property
    def roles(self) -> dict[int, Role]:
        """GPU index to role; a GPU of two roles has none and cannot be set."""
        return configured(self)

    @property
    def wishes(self) -> dict[Role, Wish]:
        """What is asked for, by role; roles for which nothing is are left out."""
        every = {
            Role.PREFILL: Wish(self.prefill_lock_mhz, self.prefill_cap_w),
            Role.DECODE: Wish(self.decode_lock_mhz, self.decode_cap_w),
            Role.COMBINED: Wish(self.combined_lock_mhz, self.combined_cap_w),
        }
        return {role: wish for role, wish in every.items() if wish.lock_mhz or wish.cap_w}

    @property
    def state_dir(self) -> Path:
        return Path(self.clocks_state_dir)
