"""What prefill and decode need alike although no setting says it, because engines may need different values of it elsewhere.

An engine sees only its own command. P2pConnector compares the text of these options when two engines meet. For the other connectors the
proxy does, which learns them from the engines' pings. The chart refuses them in the arguments of one role.
"""

import hashlib
import json
from typing import Any, Final

from pd_engine.commandline import CommandLine

# Each changes what a prompt's tokens are, or the KV and the first token that the model computes from them.
OPTIONS: Final = (
    "quantization",
    "quantization_config",
    "hf_overrides",
    "hf_config_path",
    "revision",
    "code_revision",
    "disable_sliding_window",
    "disable_hybrid_kv_cache_manager",
    "kv_cache_dtype_skip_layers",
    "calculate_kv_scales",
    "override_attention_dtype",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "interleave_mm_strings",
    "mm_processor_kwargs",
    "generation_config",
    "override_generation_config",
    "logits_processors",
)
# Also needed alike. P2pConnector compares what comes of these, which may be the same for two values.
OF_SETTINGS: Final = ("dtype", "kv_cache_dtype", "block_size", "attention_backend", "attention_config")
# A ping is short, so a longer value is told by its beginning and a digest.
TOLD_CHARACTERS: Final = 40
# Ways to guess tokens without a cache of their own; all others have layers whose KV lies beside the model's.
WITHOUT_KV: Final = ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator")
DRAFTS: Final = ("speculative_config", "spec_method", "spec_model", "spec_tokens")


def text(line: CommandLine) -> str:
    """These options as a command line has them, in one order."""
    return " ".join(f"{name}={_one_way(line.text(name) or '')}" for name in OPTIONS if name in line.given)


def told(line: CommandLine) -> dict[str, str]:
    """All that must be alike, by option, as a ping tells it."""
    return {name: _short(_one_way(line.text(name) or "")) for name in (*OF_SETTINGS, *OPTIONS) if name in line.given}


def _short(value: str) -> str:
    if len(value) <= TOLD_CHARACTERS:
        return value
    digest = hashlib.blake2b(value.encode(), digest_size=4).hexdigest()
    return f"{value[: TOLD_CHARACTERS - len(digest) - 1]}…{digest}"


def _one_way(value: str) -> str:
    """JSON in one spelling; everything else as it is."""
    try:
        return json.dumps(json.loads(value), sort_keys=True)
    except ValueError:
        return value


def draft(line: CommandLine) -> str:
    """The name of the option that asks for a draft model with KV of its own; empty if none does."""
    given = [name for name in DRAFTS if name in line.given]
    if not given:
        return ""
    config: dict[str, Any] = line.object("speculative_config")
    model = line.text("spec_model") or config.get("model")
    method = line.text("spec_method") or config.get("method") or ("ngram" if model in ("ngram", "[ngram]") else "")
    # vLLM takes a model like this for the name of a class, whatever the method says.
    own_class = isinstance(model, str) and "." in model and "/" not in model
    return "" if method in WITHOUT_KV and not own_class else given[0]
