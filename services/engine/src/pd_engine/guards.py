"""Rules for the final command, whether an option comes from a setting, from ENGINE_ARGS, or from a file that ENGINE_ARGS names.

Each rule yields the sentence with which it refuses. ENGINE_ARGS come last and win, so every rule looks at what vLLM will make of the
whole command line (commandline.py) and never at the settings alone.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pd_contracts.names import Connector, Role
from pd_engine.alike import WITHOUT_KV, draft
from pd_engine.final_command import Command
from pd_engine.guards_p2p_nccl import p2p_nccl

# P2pConnector: share of the GPU's memory for vLLM and the connector together.
MEMORY_LIMIT: Final = 0.97
# Options with which vLLM opens no HTTP port that the proxy could talk to.
NO_HTTP: Final = ("uds", "grpc", "headless")
NEEDS_HTTP: Final = "the proxy speaks HTTP over TCP to engines"
SEVERAL_HOSTS: Final = ("nnodes", "node_rank", "master_addr", "master_port", "data_parallel_address")
RANKS: Final = (
    "pipeline_parallel_size",
    "data_parallel_size",
    "data_parallel_size_local",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
BALANCED_OUTSIDE: Final = (
    "data_parallel_rank",
    "data_parallel_start_rank",
    "data_parallel_external_lb",
    "data_parallel_hybrid_lb",
    "data_parallel_multi_port_external_lb",
)
# What prefill and decode need alike, each of which has a setting.
ALIKE: Final = {
    "block_size": "KV travels in blocks that must be alike on both roles",
    "max_model_len": "a prompt that one role takes and the other does not leaves its KV behind",
    "dtype": "KV of one type is garbage in a cache of another",
    "kv_cache_dtype": "KV of one type is garbage in a cache of another",
}


def guards(command: Command) -> Iterator[str]:
    """Yield a sentence for everything in the final command that must not start."""
    settings = command.settings
    yield from _reached(command)
    yield from _one_host(command)
    if not settings.moves_kv:
        yield from _plain(command)
        return
    yield from _ranks(command)
    yield from _transfer(command)
    yield from _generates(command)
    yield from _drafts(command)
    if settings.kv_connector is Connector.P2P_NCCL:
        yield from p2p_nccl(command)
    elif settings.kv_connector is Connector.P2P:
        yield from _p2p(command)


def _reached(command: Command) -> Iterator[str]:
    """The proxy, the probes and the monitor reach the engine where the settings say."""
    settings, role = command.settings, command.settings.pd_role.value.upper()
    if command.changed("port"):
        yield (
            f"{command.said('port')}, but this engine is announced, probed and scraped at {settings.http_port}: "
            f"set {role}_HTTP_PORT (plus INSTANCE) instead."
        )
    if command.changed("host"):
        yield f"{command.said('host')}: probes and the proxy must reach the engine at all its addresses; remove --host."
    yield from _named(command)
    yield from _http(command)


def _named(command: Command) -> Iterator[str]:
    for name in ("model", "model_tag"):
        if command.changed(name):
            yield f"{command.said(name)} differs from the model that is announced: set MODEL instead."
    if command.settings.name not in command.line.words("served_model_name"):
        yield f"{command.said('served_model_name')} differs from the name that is announced: set SERVED_MODEL_NAME instead."


def _http(command: Command) -> Iterator[str]:
    for name in NO_HTTP:
        if command.line.given.get(name):
            yield f"{command.said(name)}: {NEEDS_HTTP}; remove it."
    servers = command.line.number("api_server_count")
    if servers is not None and servers < 1:
        yield f"{command.said('api_server_count')} is the same as --headless, and {NEEDS_HTTP}; remove it."
    for name in ("ssl_keyfile", "ssl_certfile"):
        if command.changed(name):
            yield (
                f"{command.said(name)}: proxy and probes would speak plain HTTP to this engine: set ENGINE_TLS_CERT_FILE and "
                "ENGINE_TLS_KEY_FILE, and the proxy's ENGINE_TLS."
            )
    if command.line.given.get("ssl_cert_reqs", "0") != "0":
        yield f"{command.said('ssl_cert_reqs')}: the proxy has no client certificate; remove it."
    if command.line.given.get("api_key"):
        yield (
            "ENGINE_ARGS: --api-key is a key that the proxy does not have: it would never admit this engine. "
            "Set ENGINE_API_KEY instead, the same for the proxy and every engine."
        )


def _one_host(command: Command) -> Iterator[str]:
    if command.changed("tensor_parallel_size"):
        yield (
            f"{command.said('tensor_parallel_size')} and TENSOR_PARALLEL_SIZE={command.settings.tensor_parallel_size}: GPUs are "
            "assigned by the setting, and prefill and decode need the same value. Set only TENSOR_PARALLEL_SIZE."
        )
    for name in SEVERAL_HOSTS:
        if command.line.given.get(name) not in (None, "1" if name == "nnodes" else None):
            yield f"{command.said(name)}: one engine over several hosts is not supported; remove it."
    for name in BALANCED_OUTSIDE:
        if command.line.given.get(name) not in (None, False):
            yield f"{command.said(name)}: the proxy balances between engines; start several instances instead."


def _plain(command: Command) -> Iterator[str]:
    connector = command.line.object("kv_transfer_config").get("kv_connector")
    if connector in [known.value for known in Connector]:
        yield (
            f"ENGINE_ARGS: --kv-transfer-config with {connector} in a combined engine, which hands over no KV: "
            "remove it, or start prefill and decode engines."
        )


def _ranks(command: Command) -> Iterator[str]:
    for name in RANKS:
        if command.line.given.get(name, "1") != "1":
            yield (
                f"{command.said(name)}: ranks of one engine would share a KV port, and prefill and decode must be split alike: "
                "use TENSOR_PARALLEL_SIZE, or several instances."
            )


def _transfer(command: Command) -> Iterator[str]:
    wanted, found = (line.object("kv_transfer_config") for line in (command.own, command.line))
    if missing := list(_unlike(wanted, found)):
        yield (
            f"ENGINE_ARGS: --kv-transfer-config replaces what KV_CONNECTOR and its settings say, and lacks {', '.join(missing)}: "
            "repeat all of it together with what you add; `python3 -m pd_engine plan` without ENGINE_ARGS prints it."
        )
    if command.line.given.get("kv_offloading_size"):
        yield (
            f"{command.said('kv_offloading_size')}: vLLM would then use another connector instead of "
            f"{command.settings.kv_connector.value}; remove it."
        )
    for name, reason in ALIKE.items():
        if command.changed(name):
            yield f"{command.said(name)}: {reason}: set {name.upper()} instead."


def _unlike(wanted: Mapping[str, Any], found: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _unlike(value, other, f"{above}{key}.")
        elif other != value:
            yield f"{above}{key}={json.dumps(value)}"


def _generates(command: Command) -> Iterator[str]:
    pooling = command.line.text("runner") == "pooling" or command.line.text("convert") not in (None, "auto", "none")
    if pooling or command.line.given.get("mm_encoder_only"):
        name = next(name for name in ("runner", "convert", "mm_encoder_only") if name in command.line.given)
        yield f"{command.said(name)}: only a generative model has KV to hand over; start it as a combined engine."


def _drafts(command: Command) -> Iterator[str]:
    """vLLM's cache groups hold the draft model's layers beside the model's, so their KV would have to travel, too."""
    if name := draft(command.line):
        yield (
            f"{command.said(name)}: a draft model has KV of its own, which both roles would need alike, and no connector was tried with it: "
            f"use a method without KV ({', '.join(WITHOUT_KV)}), or a combined engine."
        )


def _p2p(command: Command) -> Iterator[str]:
    """Its pools lie beside what vLLM takes of the GPU."""
    settings, line, total = command.settings, command.line, command.gpu_memory_bytes
    decode = settings.pd_role is Role.DECODE
    name = "KV_LANDING_BYTES" if decode else "KV_STAGING_BYTES"
    pool = settings.kv_landing_bytes if decode else settings.kv_staging_bytes
    if total is None:
        return
    cache, memory = line.number("kv_cache_memory_bytes"), line.number("gpu_memory_utilization")
    if cache is not None and cache + pool > MEMORY_LIMIT * total:
        # vLLM then does not look at its share of the memory.
        option = command.said("kv_cache_memory_bytes")
    elif cache is None and memory is not None and memory + pool / total > MEMORY_LIMIT:
        option = command.said("gpu_memory_utilization", "GPU_MEMORY_UTILIZATION")
    else:
        return
    yield (
        f"{option} and {name}={pool} together are more than {MEMORY_LIMIT} of the GPU's {total} bytes, and CUDA needs some too: "
        "lower one of them."
    )
