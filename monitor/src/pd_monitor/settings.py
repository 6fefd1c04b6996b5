"""Every setting of the monitor, with its default."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from pd_contracts.names import Role
from pd_contracts.ports import Port
from pd_monitor.pages import parse_pages
from pd_monitor.pods import parse_patterns
from pd_monitor.roles import configured

GpuIndex = Annotated[int, msgspec.Meta(ge=0)]
Gpus = tuple[GpuIndex, ...]
# Types that `pd-monitor clocks` shares.
PrefillGpus = Annotated[Gpus, msgspec.Meta(description="GPUs of prefill engines")]
DecodeGpus = Annotated[Gpus, msgspec.Meta(description="GPUs of decode engines")]
PrefillGpu = Annotated[GpuIndex | None, msgspec.Meta(description="the one prefill GPU, where PREFILL_GPUS is unset")]
DecodeGpu = Annotated[GpuIndex | None, msgspec.Meta(description="the one decode GPU, where DECODE_GPUS is unset")]
# A sensor refreshes every 100 ms or so and a call is not free, so nothing below 20 ms is worth asking for.
Interval = Annotated[float, msgspec.Meta(ge=0.02, le=60)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read with `pd_contracts.settings`: MONITOR_PORT or `--monitor-port`, and so on."""

    monitor_port: Annotated[Port, msgspec.Meta(description="port of the HTTP API and of /metrics")] = 9835
    bind_host: Annotated[str, msgspec.Meta(description="address to listen on")] = "0.0.0.0"
    monitor_interval_s: Annotated[
        Interval, msgspec.Meta(description="seconds between samples while nothing is recorded")
    ] = 1.0
    recording_interval_s: Annotated[
        Interval, msgspec.Meta(description="seconds between samples of a recording without an interval")
    ] = 0.1
    max_recording_s: Annotated[
        float, msgspec.Meta(gt=0, description="seconds after which a recording stops by itself")
    ] = 4 * 3600.0
    prefill_gpus: PrefillGpus = ()
    decode_gpus: DecodeGpus = ()
    combined_gpus: Annotated[
        Gpus,
        msgspec.Meta(description="GPUs of combined engines; a GPU that is also in another list has that list's role"),
    ] = ()
    prefill_gpu: PrefillGpu = None
    decode_gpu: DecodeGpu = None
    monitor_backend: Annotated[
        Literal["auto", "nvml", "rocm", "simulated"],
        msgspec.Meta(
            description="auto: NVML if it finds a GPU, else ROCm SMI if it does, else SIM_BOARDS if set; simulated without SIM_BOARDS: built-in boards with a square wave"
        ),
    ] = "auto"
    rocm_smi_library: Annotated[
        str, msgspec.Meta(description="path of librocm_smi64 (AMD, Hygon), if it is not found automatically")
    ] = ""
    sim_boards: Annotated[
        tuple[str, ...],
        msgspec.Meta(description="board addresses of simulators, like http://127.0.0.1:20003/sim/board"),
    ] = ()
    engine_metrics: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="the engines' metrics pages, prefill=http://127.0.0.1:20003/metrics,…: a recording has their token counters; unset: those of SIM_BOARDS"
        ),
    ] = ()
    engine_metrics_interval_s: Annotated[
        float,
        msgspec.Meta(ge=0.1, description="seconds between readings of the engines' pages while something is recorded"),
    ] = 2.0
    nvml_retry_s: Annotated[
        float, msgspec.Meta(gt=0, description="seconds until NVML is reopened after a loss; doubles up to a minute")
    ] = 5.0
    pod_resources_socket: Annotated[
        str,
        msgspec.Meta(
            description="the kubelet's socket (/var/lib/kubelet/pod-resources/kubelet.sock), to name the pod of each GPU"
        ),
    ] = ""
    pod_role_patterns: Annotated[
        tuple[str, ...],
        msgspec.Meta(description="role of a GPU by its pod's name, or name/container, if no list names the GPU"),
    ] = ("prefill=*prefill*", "decode=*decode*", "combined=*combined*")
    log_level: Annotated[
        str,
        msgspec.Meta(
            pattern="(?i)^(debug|info|warning|error|critical)$", description="DEBUG, INFO, WARNING, ERROR or CRITICAL"
        ),
    ] = "INFO"

    def __post_init__(self) -> None:
        """Refuse board addresses that could never be polled, and invalid patterns."""
        parse_patterns(self.pod_role_patterns)
        parse_pages(self.engine_metrics)
        for url in self.sim_boards:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                msg = f"SIM_BOARDS: {url!r} is not an address; expected something like http://127.0.0.1:20003/sim/board"
                raise ValueError(msg)

    @property
    def roles(self) -> dict[int, Role]:
        """GPU index to role, from the lists or their single forms."""
        return configured(self)
