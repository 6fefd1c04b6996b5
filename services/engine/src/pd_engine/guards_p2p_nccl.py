"""Rules for the final command of engines with vLLM's own P2pNcclConnector, which checks none of them itself."""

from collections.abc import Iterator
from typing import Final

from pd_contracts.names import Role
from pd_engine.final_command import Command

DECODE_MEMORY_LIMIT: Final = 0.8
# Modes of CUDA graphs with which vLLM still calls the connector, by role.
GRAPHS: Final = {
    Role.PREFILL: ("NONE",),
    Role.DECODE: ("NONE", "FULL_DECODE_ONLY"),
}


def p2p_nccl(command: Command) -> Iterator[str]:
    """Yield a sentence for everything that P2pNcclConnector would answer with garbage, a crash or a wait."""
    settings, line = command.settings, command.line
    yield from _graphs(command)
    if line.on("enable_prefix_caching") is not False:
        yield (
            f"{command.said('enable_prefix_caching')} with P2pNcclConnector: pushed KV is never freed after a local hit; "
            "set KV_CONNECTOR=P2pConnector instead."
        )
    if settings.pd_role is Role.PREFILL:
        yield from _whole_prompts(command)
    else:
        yield from _room(command)


def _graphs(command: Command) -> Iterator[str]:
    line, settings = command.line, command.settings
    if line.on("enforce_eager"):
        return
    role = settings.pd_role
    # vLLM's own choice, if none is named, replays full graphs.
    mode = str(line.object("compilation_config").get("cudagraph_mode") or "FULL").upper()
    if mode in GRAPHS[role]:
        return
    name = "enforce_eager" if command.changed("enforce_eager") else "compilation_config"
    reason = (
        "a step replayed from a CUDA graph never sends its KV, and decode would wait forever"
        if role is Role.PREFILL
        else "CUDA graphs of prefill-shaped steps skip loading KV, and the answer is garbage"
    )
    allowed = " or ".join(GRAPHS[role])
    yield (
        f"{command.said(name)} with P2pNcclConnector's {role.value}: {reason}. Remove it, or set cudagraph_mode {allowed}."
    )


def _whole_prompts(command: Command) -> Iterator[str]:
    line = command.line
    cut = "a prompt cut into chunks crashes P2pNcclConnector's prefill"
    if line.on("enable_chunked_prefill") is not False:
        yield f"{command.said('enable_chunked_prefill')}: {cut}; remove it."
    threshold = line.number("long_prefill_token_threshold")
    if "long_prefill_token_threshold" in line.given and threshold != 0:
        yield f"{command.said('long_prefill_token_threshold')}: {cut}; remove it."
    batched, longest = line.number("max_num_batched_tokens"), line.number("max_model_len")
    if batched is not None and longest is not None and batched < longest:
        yield (
            f"{command.said('max_num_batched_tokens', 'MAX_NUM_BATCHED_TOKENS')} is less than "
            f"{command.said('max_model_len', 'MAX_MODEL_LEN')}: {cut}, so a whole prompt must fit into one step."
        )


def _room(command: Command) -> Iterator[str]:
    line = command.line
    memory = line.number("gpu_memory_utilization")
    if "gpu_memory_utilization" in line.given and (memory is None or memory > DECODE_MEMORY_LIMIT):
        yield (
            f"{command.said('gpu_memory_utilization', 'GPU_MEMORY_UTILIZATION')} leaves decode no room for KV that arrives over "
            "P2P NCCL (it then runs out of memory and answers with garbage): "
            f"set {DECODE_MEMORY_LIMIT} or less, 0.7 is the default."
        )
    cache, total = line.number("kv_cache_memory_bytes"), command.gpu_memory_bytes
    if cache is not None and total is not None and cache > DECODE_MEMORY_LIMIT * total:
        yield (
            f"{command.said('kv_cache_memory_bytes')} is more than {DECODE_MEMORY_LIMIT} of the GPU's {total} bytes, and decode needs "
            "room for its weights and for KV that arrives over P2P NCCL: lower it."
        )
    if "num_gpu_blocks_override" in line.given:
        yield (
            f"{command.said('num_gpu_blocks_override')} takes memory without a limit, and decode needs room for KV that arrives over "
            "P2P NCCL: set GPU_MEMORY_UTILIZATION, or --kv-cache-memory-bytes."
        )
