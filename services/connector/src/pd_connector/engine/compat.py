"""Differences between vLLM's versions, and uses of vLLM's internals. Detected by capability, never by version number."""

import hashlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

# The `stop_reason` of a request that cannot continue begins with this.
STOP_REASON: Final = "pd: "
_VOLATILE: Final = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
# Sampling fields that work on the output so far, and the values with which they do nothing. Defaults of an engine's own come from
# `--override-generation-config`, or from the model's generation_config.json.
_OF_OUTPUT: Final = {"presence_penalty": 0, "frequency_penalty": 0, "skip_special_tokens": True}
# Settings of an engine with which more than the model reads a request's tokens: draws depend on more than seed and position.
_READ_TOKENS: Final = ("speculative_config", "diffusion_config", "watermark_config")


class RefusalError(ValueError):
    """The connector cannot work with this engine; the message has the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about an engine that the connector needs.

    Attributes:
        block_size: tokens of a block.
        blocks: blocks of the KV cache.
        ranks: tensor-parallel workers.
        port: where rank 0 listens.
        schema: what must be equal on both ends, without the layout, which only the workers know.
        fails: a request whose KV does not come fails, instead of being computed.
        step_tokens: most tokens of one step.
        layers_once: vLLM tells of each layer once in a step, so the KV of a step is complete when all layers were told of.
        ids_alone: when a step begins, only its own computation still reads the ids of its tokens.
    """

    engine_id: str
    block_size: int
    blocks: int
    ranks: int
    port: int
    sends: bool
    takes: bool
    fails: bool
    step_tokens: int
    layers_once: bool
    ids_alone: bool
    schema: dict[str, str]


def read(vllm_config: Any, kv_cache_config: Any, model_tag: str) -> Facts:
    """Read an engine's configuration.

    Raises:
        RefusalError: if the connector cannot work with it.
    """
    parallel, transfer = vllm_config.parallel_config, vllm_config.kv_transfer_config
    _refuse(parallel, kv_cache_config)
    group = kv_cache_config.kv_cache_groups[0]
    schema = {
        "model": _model(vllm_config.model_config) + (f" {model_tag}" if model_tag else ""),
        "KV cache dtype": str(vllm_config.cache_config.cache_dtype),
        "block size": str(group.kv_cache_spec.block_size),
        "tensor parallel size": str(parallel.tensor_parallel_size),
        **_draft(getattr(vllm_config, "speculative_config", None)),
    }
    return Facts(
        engine_id=str(transfer.engine_id),
        block_size=int(group.kv_cache_spec.block_size),
        blocks=int(kv_cache_config.num_blocks),
        ranks=int(parallel.tensor_parallel_size),
        port=int(transfer.kv_port),
        sends=bool(transfer.is_kv_producer),
        takes=bool(transfer.is_kv_consumer),
        fails=transfer.kv_load_failure_policy == "fail",
        step_tokens=int(vllm_config.scheduler_config.max_num_batched_tokens),
        layers_once=_layers_once(vllm_config),
        ids_alone=_ids_alone(vllm_config),
        schema=schema,
    )


def _refuse(parallel: Any, kv_cache_config: Any) -> None:
    sizes = {
        "pipeline_parallel_size": "run the model with tensor parallelism only",
        "data_parallel_size": "start one engine for each copy of the model",
        "decode_context_parallel_size": "leave it at 1",
        "prefill_context_parallel_size": "leave it at 1",
    }
    for name, advice in sizes.items():
        value = getattr(parallel, name, 1)
        if value > 1:
            msg = f"P2pConnector does not work with {name}={value}: {advice}"
            raise RefusalError(msg)
    groups = kv_cache_config.kv_cache_groups
    specs = {type(group.kv_cache_spec).__name__ for group in groups}
    if len(groups) != 1 or any("Mamba" in name for name in specs):
        msg = (
            f"P2pConnector moves the KV of models with one kind of attention; this one has {len(groups)} groups of layers "
            f"({', '.join(sorted(specs)) or 'none'})"
        )
        raise RefusalError(msg)


def _layers_once(vllm_config: Any) -> bool:
    """False where a step has more than one pass through the layers: for halves of the batch, or for speculated tokens."""
    halves = getattr(vllm_config.parallel_config, "use_ubatching", False)
    return not halves and getattr(vllm_config, "speculative_config", None) is None


def _ids_alone(vllm_config: Any) -> bool:
    """False where prompts may come embedded, or where a draft model, a watermark or somebody's logits processor reads the ids, too."""
    model = vllm_config.model_config
    embedded = getattr(model, "enable_prompt_embeds", False)
    read = any(getattr(vllm_config, name, None) is not None for name in _READ_TOKENS)
    return not (embedded or read or _processes_logits(model))


def _processes_logits(model_config: Any) -> bool:
    """Whether the engine has logits processors of its own. vLLM loads those that are installed as plugins, too."""
    given = getattr(model_config, "logits_processors", None)
    return bool(given or metadata.entry_points(group="vllm.logits_processors"))


def own_sampling(vllm_config: Any) -> tuple[str, str]:
    """The fields with a default of the engine's own that works on the output so far, and its own limit of output tokens; empty if none.

    A request that continues another engine's answer has them, too, but what it continues from counts as prompt.
    """
    model = vllm_config.model_config
    read: Any = getattr(model, "get_diff_sampling_param", dict)
    found = read()
    names = [name for name, neutral in _OF_OUTPUT.items() if found.get(name, neutral) != neutral]
    if _processes_logits(model):
        names.append("logits_processors")
    return " ".join(names), str(found.get("max_tokens") or "")


def _model(model_config: Any) -> str:
    """A digest of the model's shape: engines may have it under different names."""
    found = model_config.hf_config.to_dict()
    text = json.dumps({k: v for k, v in found.items() if k not in _VOLATILE}, sort_keys=True, default=str)
    names = found.get("architectures") or ["unknown"]
    return f"{names[0]}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


# Ways to guess tokens without layers whose KV lies in the cache.
_DRAFTS_WITHOUT_KV: Final = ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator")


def _draft(config: Any) -> dict[str, str]:
    """What guesses tokens, if its KV is a part of every block. Then the layouts differ, too, but only this says why."""
    if config is None or config.method in _DRAFTS_WITHOUT_KV:
        return {}
    model = getattr(config, "draft_model_config", None)
    return {"draft model": f"{config.method} {_model(model)}" if model is not None else str(config.method)}


def seeded_draws(vllm_config: Any) -> str:
    """How tokens of requests with a seed are drawn, if a draw depends on seed and position alone; else empty.

    Engines with equal texts draw the same token at the same position, whichever of them computed what is before it. vLLM's V2 model runner
    hashes seed, position and token; the hash has changed between versions, so the version is part of the text. The V1 runner
    has a generator for each request, whose state depends on how often it has drawn.
    """
    if not getattr(vllm_config, "use_v2_model_runner", False):
        return ""
    if any(getattr(vllm_config, name, None) is not None for name in _READ_TOKENS):
        return ""
    precision = "fp64" if getattr(vllm_config.model_config, "use_fp64_gumbel", False) else "fp32"
    return f"v2 {_version()} {precision}"


def _version() -> str:
    import vllm  # noqa: PLC0415  the scheduler's half needs no vLLM

    return str(vllm.__version__)


def own_host() -> str:
    """The address of this host, as vLLM finds it."""
    configured = os.environ.get("VLLM_HOST_IP", "")
    if configured:
        return configured
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # Connecting a UDP socket sends nothing; the system chooses the address that it would use.
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


def tensor_rank() -> int:
    """This worker's number among those that share the model."""
    from vllm.distributed import get_tensor_model_parallel_rank  # noqa: PLC0415  the scheduler's half needs no vLLM

    return int(get_tensor_model_parallel_rank())


def input_ids() -> Any:
    """The tensor from which a step's computation reads the ids of its tokens; None if there is none, or if more is made of them before.

    Called while vLLM's model runner registers its KV caches: a connector is not told of the runner, so it is looked for among the callers.
    """
    for frame, _ in traceback.walk_stack(sys._getframe()):  # noqa: SLF001  the default depends on Python's version
        runner = frame.f_locals.get("self")
        if "GPUModelRunner" in (one.__name__ for one in type(runner).__mro__):
            return _ids_of(runner)
    return None


def _ids_of(runner: Any) -> Any:
    if getattr(runner, "supports_mm_inputs", True):
        return None  # it embeds tokens before the step, together with images
    buffers = getattr(runner, "input_buffers", None)
    if buffers is None:  # the V1 runner, which has the ids in the host's memory, too
        return getattr(getattr(runner, "input_ids", None), "gpu", None)
    prepares = type(getattr(runner, "model_state", None)).__name__
    return getattr(buffers, "input_ids", None) if prepares == "DefaultModelState" else None


# Requests, as the scheduler has them


def prompt_of(request: Any) -> list[int] | None:
    """The token ids of a request's prompt; None if it has none."""
    if request.prompt_token_ids is None or getattr(request, "prompt_embeds", None) is not None:
        return None
    return request.prompt_token_ids  # type: ignore[no-any-return]


def extras_of(request: Any) -> Iterable[str]:
    """Everything that a request's KV depends on besides the prompt's tokens."""
    lora = getattr(request, "lora_request", None)
    if lora is not None:
        yield f"lora {lora.lora_name}"
    for feature in getattr(request, "mm_features", None) or ():
        yield f"mm {feature.identifier} {feature.mm_position.offset}"


def needs_whole_prompt(request: Any) -> bool:
    """Whether the prompt must be computed here, because the request asks for data about its tokens, such as log probabilities."""
    return getattr(request.sampling_params, "prompt_logprobs", None) is not None


def reads_prompt(request: Any) -> bool:
    """Whether its last token is needed before the step: because the sampler reads it, or because vLLM computes the prompt in spite of its KV."""
    if getattr(request, "skip_reading_prefix_cache", False):
        return True
    wanted = request.sampling_params
    penalty, words = getattr(wanted, "repetition_penalty", 1), getattr(wanted, "bad_words", None)
    return penalty != 1 or bool(words) or getattr(wanted, "thinking_token_budget", None) is not None


def first_token(request: Any) -> int | None:
    """The first token of a finished request's answer; None if it was aborted or failed."""
    if str(request.status) not in ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_REPETITION"):
        return None
    return int(request.output_token_ids[0]) if len(request.output_token_ids) else None


def aborted(request: Any) -> bool:
    """Whether a request was aborted, for example because the client left."""
    return str(request.status) == "FINISHED_ABORTED"


def set_last_prompt_token(request: Any, token: int) -> None:
    """Replace the last token of a prompt; after a preemption, tokens of the answer follow it."""
    request.prompt_token_ids[-1] = token
    last = len(request.prompt_token_ids) - 1
    request._all_token_ids[last] = token  # noqa: SLF001  its read-only view is what everybody else reads
    if request.block_hashes:
        # The last block hash may cover the token, so it is computed again.
        request.block_hashes.pop()
        request.update_block_hashes()


def end_early(request: Any, reason: str) -> None:
    """Make a request end with its next token and set the reason; vLLM has no way to fail a request from here."""
    request.max_tokens = 1
    request.sampling_params.min_tokens = 0
    # vLLM would overwrite the reason with one of these.
    request.sampling_params.stop_token_ids = []
    request.stop_reason = STOP_REASON + reason


def fail(request: Any, reason: str) -> None:
    """As `end_early`, for a request whose next token is wrong: clients get an error instead of it."""
    end_early(request, reason)
    statuses = type(request.status)
    error = statuses.get_finished_reason(statuses.FINISHED_ERROR)
    request.get_finished_reason = lambda: error
