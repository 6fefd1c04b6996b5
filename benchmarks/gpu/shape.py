# ruff: noqa: INP001, T201 - a script, not a package
"""A directory that vLLM serves with LOAD_FORMAT=dummy: the shape of a known model, and a tokenizer for every token of it.

`python benchmarks/gpu/shape.py llama-3.1-8b FOLDER`. Dummy weights take a step exactly as long as real ones; what they write means
nothing, so no output is compared here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

# From each model's published config.json; vocabulary and lengths as there.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
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
        "vocab_size": 128_256,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "qwen3-4b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 40_960,
        "vocab_size": 151_936,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="shape", description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(write(options.name, options.folder))


def write(name: str, folder: Path) -> Path:
    """Write config.json and the tokenizer; a token is a word, so that every token of an answer has a text."""
    config = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(config["vocab_size"])))
    ends = {f"{end}_token": f"w{config[f'{end}_token_id']}" for end in ("bos", "eos")}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def _tokenizer(size: int) -> dict[str, Any]:
    """The `tokenizers` library's format, with the parts that stay empty."""
    vocabulary = {f"w{token}": token for token in range(size)}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    return {"version": "1.0", **empty, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}


if __name__ == "__main__":
    main()
