# ruff: noqa: INP001 - scripts, not a package
"""A directory that vLLM serves with `--load-format dummy`: the shape of Llama 3.1 8B, and a tokenizer for every token of it.

Dummy weights take a step exactly as long as real ones; what they write means nothing, so no output is compared here.
"""

import json
from pathlib import Path
from typing import Any

VOCABULARY = 128_256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131_072,
    "vocab_size": VOCABULARY,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def write(folder: Path) -> Path:
    """Write config.json and the tokenizer; a token is a word, so that every token of an answer has a text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w128000", "eos_token": "w128001"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def _tokenizer() -> dict[str, Any]:
    """The `tokenizers` library's format, with the parts that stay empty."""
    vocabulary = {f"w{token}": token for token in range(VOCABULARY)}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    return {"version": "1.0", **empty, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
