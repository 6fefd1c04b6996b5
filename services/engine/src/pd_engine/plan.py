"""Settings to the one command that replaces this process. Every argument that is not plain has its reason beside it."""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pd_contracts.names import Connector, Role
from pd_engine import alike
from pd_engine.commandline import CommandLineError, config_path, parse
from pd_engine.detokenizer import PLUGINS
from pd_engine.final_command import Command
from pd_engine.guards import guards
from pd_engine.refusals import refusals
from pd_engine.settings import EngineSettings, Host

# vLLM's default on the CPU is 128, and shorter prompts would travel without any KV; its attention takes multiples of 32.
CPU_BLOCK_SIZE = 32

# vLLM's default share of a GPU's memory; the same from 0.23 to 0.33.
VLLM_MEMORY = 0.9
# If the GPU's size is unknown, this share for KV in transit is a guess that fits boards of 40 GB or more.
UNKNOWN_GPU_MEMORY = 0.8
# The CPU engine computes on toy models, and has the machine's memory to share.
CPU_POOL_BYTES = 64 * 1024**2

# Which way KV takes between hosts: read by NCCL, torch and UCX themselves.
NETWORK = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "UCX_NET_DEVICES", "UCX_TLS")
# Whether UCX may read another process's GPU memory; unless set, it does so only where it sees NVLink, and takes TCP elsewhere.
UCX_READS = "UCX_CUDA_IPC_ENABLE_GET_ZCOPY"
# Of `.env`, for compose; vLLM warns about every name that begins like its own and is not.
OF_COMPOSE = ("VLLM_IMAGE", "VLLM_CPU_IMAGE")


class RefusedError(ValueError):
    """This engine must not start; the message is one sentence per line."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What to run.

    Attributes:
        arguments: those of `vllm serve`.
        environment: variables to add.
        unset: variables to take away: empty ones, which NCCL and UCX would take for a choice of nothing, and names at which vLLM would warn.
        announce: whether an announcer must ping, instead of the engine or beside it.
        clean_shared_path: whether a cleaner must keep the shared KV folder from filling up.
    """

    arguments: list[str]
    environment: dict[str, str]
    unset: list[str]
    announce: bool
    clean_shared_path: bool


def plan(settings: EngineSettings, host: Host, environment: Mapping[str, str]) -> Launch:
    """Decide how the engine starts.

    Raises:
        RefusedError: if it could not work.
    """
    sentences = complaints(settings, host, environment)
    if sentences:
        raise RefusedError("\n".join(sentences))
    return Launch(
        arguments=_command(settings, host),
        environment=dict(_environment(settings, host)) | dict(_beside(settings, environment)),
        unset=[
            *(name for name in NETWORK if environment.get(name) == ""),
            *(name for name in OF_COMPOSE if name in environment),
        ],
        announce=not pings_itself(settings) or settings.has_key,
        # One cleaner is enough, and prefill is what fills the folder.
        clean_shared_path=settings.pd_role is Role.PREFILL and settings.kv_connector is Connector.EXAMPLE,
    )


def _command(settings: EngineSettings, host: Host) -> list[str]:
    added = shlex.split(settings.engine_args)
    return [*_arguments(settings, host, alike.text(parse([settings.model, *added], host.config))), *added]


def pings_itself(settings: EngineSettings) -> bool:
    """Whether vLLM announces itself, as its P2pNcclConnector does; it neither signs nor says whose engine it is."""
    return settings.moves_kv and settings.kv_connector is Connector.P2P_NCCL


def complaints(settings: EngineSettings, host: Host, environment: Mapping[str, str]) -> list[str]:
    """A sentence for everything in the settings, the variables and the final command that must not start."""
    return [*refusals(settings, host, environment), *_command_refusals(settings, host)]


def _command_refusals(settings: EngineSettings, host: Host) -> Iterator[str]:
    try:
        added = shlex.split(settings.engine_args)
    except ValueError:
        return  # a sentence of its own already
    file = config_path(added)
    # vLLM looks for the word `--config` itself, once.
    if any(word.startswith("--config=") for word in added) or added.count("--config") > 1:
        yield "ENGINE_ARGS: vLLM reads one file of options, and only as two words: --config FILE; write it so, and once."
        return
    if host.config_problem:
        yield f"ENGINE_ARGS: --config {file} cannot be read: {host.config_problem}."
        return
    if file and not file.endswith((".yaml", ".yml")):
        yield f"ENGINE_ARGS: --config {file}: vLLM reads only files whose names end in .yaml or .yml; rename it."
        return
    own = list(_arguments(settings, host, ""))
    try:
        line = parse([*own, *added], host.config)
    except CommandLineError as error:
        yield f"ENGINE_ARGS={settings.engine_args!r} cannot be read as options of vllm serve: {error}; write them in full."
        return
    command = Command(line=line, own=parse(own), settings=settings, gpu_memory_bytes=host.gpus.memory_bytes)
    yield from guards(command)


def announced_address(settings: EngineSettings, host: Host) -> str:
    """Numeric address under which the engine is reached."""
    return settings.vllm_host_ip or host.address


def _arguments(settings: EngineSettings, host: Host, tag: str) -> Iterator[str]:
    """`tag`: what an engine at the other end needs alike and has in ENGINE_ARGS."""
    yield from (settings.model, "--host", "0.0.0.0", "--port", str(settings.http_port))
    yield from ("--served-model-name", settings.name)
    for name in ("max_model_len", "max_num_seqs", "dtype", "kv_cache_dtype", "load_format", "tensor_parallel_size"):
        value = getattr(settings, name)
        if value is not None:
            yield from ("--" + name.replace("_", "-"), str(value))
    block_size = settings.block_size or (CPU_BLOCK_SIZE if settings.engine_device == "cpu" else None)
    if block_size is not None:
        yield from ("--block-size", str(block_size))
    yield "--enable-prefix-caching" if _prefix_caching(settings) else "--no-enable-prefix-caching"
    # Health checks and scrapes come every second; their lines would bury the ones that matter.
    yield "--disable-uvicorn-access-log"
    if settings.engine_tls_cert_file:
        yield from ("--ssl-certfile", settings.engine_tls_cert_file, "--ssl-keyfile", settings.engine_tls_key_file)
    yield from _memory(settings, host)
    yield from _steps(settings)
    if settings.moves_kv:
        yield from ("--kv-transfer-config", json.dumps(_kv_transfer(settings, host, tag), separators=(",", ":")))


def _prefix_caching(settings: EngineSettings) -> bool:
    if settings.both:
        return True  # an engine that goes on with a prompt of its own finds it in the prefix cache
    # With P2pNccl a local hit on decode leaves pushed KV unreceived, which is never freed.
    return settings.prefix_caching and not _p2p_nccl(settings)


def _memory(settings: EngineSettings, host: Host) -> Iterator[str]:
    memory = settings.gpu_memory_utilization
    if memory is None and _p2p_nccl(settings) and settings.pd_role is Role.DECODE:
        memory = 0.7  # received KV lies outside the KV cache until its request ends
    elif memory is None and _p2p(settings):
        memory = memory_beside(pool_bytes(settings), host.gpus.memory_bytes)
    if memory is not None and settings.engine_device == "gpu":
        yield from ("--gpu-memory-utilization", str(memory))


def pool_bytes(settings: EngineSettings) -> int:
    """GPU memory that P2pConnector takes beside vLLM's own, which vLLM does not know of when it measures what is free."""
    staging = settings.kv_staging_bytes if settings.pd_role is not Role.DECODE else 0
    return staging + (settings.kv_landing_bytes if settings.pd_role is not Role.PREFILL else 0)


def memory_beside(pool: int, total: int | None) -> float:
    """The share of the GPU that is left to vLLM."""
    return UNKNOWN_GPU_MEMORY if total is None else math.floor((VLLM_MEMORY - pool / total) * 1000) / 1000


def _steps(settings: EngineSettings) -> Iterator[str]:
    batched = settings.max_num_batched_tokens
    if _p2p_nccl(settings) and settings.pd_role is Role.PREFILL:
        # A chunked prompt trips an assertion in the connector, so a prompt is never cut …
        yield "--no-enable-chunked-prefill"
        batched = batched or settings.max_model_len
        # … and a step replayed from a CUDA graph never runs the hook that sends a layer's KV: decode would wait forever.
        yield "--enforce-eager"
    elif settings.enforce_eager or settings.engine_device == "cpu":
        yield "--enforce-eager"
    elif _p2p_nccl(settings):
        # Decode needs graphs for its step time; prefill-shaped steps stay outside them so that KV is loaded first.
        yield from ("--compilation-config", '{"cudagraph_mode":"FULL_DECODE_ONLY"}')
    if batched is not None:
        yield from ("--max-num-batched-tokens", str(batched))


def _p2p(settings: EngineSettings) -> bool:
    return settings.moves_kv and settings.kv_connector is Connector.P2P


def _p2p_nccl(settings: EngineSettings) -> bool:
    return settings.moves_kv and settings.kv_connector is Connector.P2P_NCCL


def _kv_transfer(settings: EngineSettings, host: Host, tag: str) -> dict[str, Any]:
    role = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer", Role.COMBINED: "kv_both"}[settings.pd_role]
    base: dict[str, Any] = {"kv_connector": settings.kv_connector.value, "kv_role": role}
    if settings.kv_connector is Connector.EXAMPLE:
        extra = {"shared_storage_path": settings.kv_shared_path}
        module = "pd_engine.example_connector"  # upstream's, but for a crash that it mends
        return {**base, "kv_role": "kv_both", "kv_connector_module_path": module, "kv_connector_extra_config": extra}
    if settings.kv_connector is Connector.P2P:
        return {
            **base,
            "kv_connector_module_path": "pd_connector.connector",
            "kv_port": settings.kv_port,
            "kv_load_failure_policy": settings.kv_load_failure_policy,
            "kv_connector_extra_config": _p2p_settings(settings, host) | ({"model_tag": tag} if tag else {}),
        }
    if settings.kv_connector is Connector.NIXL:
        return {**base, "kv_buffer_device": "cpu"} if settings.engine_device == "cpu" else base
    extra = {
        "proxy_ip": settings.proxy_host,
        "proxy_port": str(settings.proxy_port),  # the connector concatenates it: a number raises
        "http_port": str(settings.http_port),  # without it the ping thread dies with a KeyError
        "send_type": "PUT_ASYNC",
        "nccl_num_channels": "8",  # goes to an environment variable as it is
        "mem_pool_size_gb": "1",  # 32 unless set, pinned at start on both roles
    }
    # Prefill sends and keeps nothing; decode's buffer bounds what may arrive before it is read.
    size = 1e1 if settings.pd_role is Role.PREFILL else settings.kv_buffer_bytes
    return {**base, "kv_buffer_size": size, "kv_port": settings.kv_port, "kv_connector_extra_config": extra}


def _p2p_settings(settings: EngineSettings, host: Host) -> dict[str, Any]:
    """P2pConnector's own settings; both pools are given, because an engine may serve either role."""
    cpu = settings.engine_device == "cpu"
    return {
        "host": announced_address(settings, host),
        "transports": ["tcp"] if cpu else list(settings.kv_transports),
        "socket_folder": settings.kv_socket_folder,
        "landing_bytes": CPU_POOL_BYTES if cpu else settings.kv_landing_bytes,
        "staging_bytes": CPU_POOL_BYTES if cpu else settings.kv_staging_bytes,
        "load_timeout_s": settings.kv_load_timeout_s,
    }


def _environment(settings: EngineSettings, host: Host) -> Iterator[tuple[str, str]]:
    address = announced_address(settings, host)
    yield "VLLM_HOST_IP", address
    yield "VLLM_NO_USAGE_STATS", "1"
    if settings.engine_api_key:
        # Not on the command line, which every process of the host may read.
        yield "VLLM_API_KEY", settings.engine_api_key
    if not host.has_flashinfer:
        # The default sampler, absent here, would stop the engine at its first request.
        yield "VLLM_USE_FLASHINFER_SAMPLER", "0"
    if settings.engine_device == "cpu":
        yield from _cpu()
    for name in NETWORK:
        if value := getattr(settings, name.lower()):
            yield name, value
    if settings.pd_role is not Role.COMBINED:
        yield from _connector(settings, address)


def _connector(settings: EngineSettings, address: str) -> Iterator[tuple[str, str]]:
    if settings.kv_connector is Connector.P2P_NCCL:
        if settings.guard_model_runner:
            yield "VLLM_USE_V2_MODEL_RUNNER", "0"  # V2 makes decode ignore the KV and answer with garbage
        yield "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1"  # KV is keyed by the id: both sides must see the same one
    elif settings.kv_connector is Connector.NIXL:
        yield "VLLM_NIXL_SIDE_CHANNEL_HOST", address  # "localhost" unless set, which the other container cannot reach
        yield "VLLM_NIXL_SIDE_CHANNEL_PORT", str(settings.kv_port)
        if settings.engine_device == "cpu" and not settings.ucx_tls:
            yield "UCX_TLS", "tcp"  # shared-memory transports need a shared IPC namespace


def _beside(settings: EngineSettings, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that depend on what is set already."""
    yield "PYTHONPATH", os.pathsep.join(filter(None, (str(PLUGINS), environment.get("PYTHONPATH"))))
    nixl = settings.moves_kv and settings.kv_connector is Connector.NIXL
    if nixl and settings.engine_device == "gpu" and not environment.get(UCX_READS):
        yield UCX_READS, "on"


def _cpu() -> Iterator[tuple[str, str]]:
    yield "VLLM_CPU_KVCACHE_SPACE", "1"  # GiB; the default takes most of the machine
    yield "VLLM_CPU_OMP_THREADS_BIND", "nobind"  # binding needs more cores than engines share here
    yield "OMP_NUM_THREADS", "1"
