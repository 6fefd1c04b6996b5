# ruff: noqa: INP001, T201 - a script, not a package
"""A directory that vLLM serves with LOAD_FORMAT=dummy: the shape of a known model, and a tokenizer for every token of it.

`python benchmarks/gpu/shape.py llama-3.1-8b FOLDER`. Dummy weights take a step exactly as long as real ones; what they write means
nothing. To compare outputs, `--random --layers 8` draws weights with which every token depends on the KV before it (needs torch).
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
    parser.add_argument("--layers", type=int, help="so many layers instead of the model's")
    parser.add_argument("--random", action="store_true", help="write random weights, for LOAD_FORMAT=auto")
    options = parser.parse_args()
    print(write(options.name, options.folder, options.layers))
    if options.random:
        draw(options.folder)


def write(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write config.json and the tokenizer; a token is a word, so that every token of an answer has a text."""
    config = SHAPES[name] | ({"num_hidden_layers": layers} if layers else {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(config["vocab_size"])))
    ends = {f"{end}_token": f"w{config[f'{end}_token_id']}" for end in ("bos", "eos")}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def draw(folder: Path) -> None:
    """Random weights; with a standard deviation of 0.06 what a model writes depends on its KV, with the usual 0.02 it hardly does."""
    import torch  # noqa: PLC0415  only on a GPU host
    from safetensors.torch import save_file  # noqa: PLC0415

    config = json.loads((folder / "config.json").read_text())
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, groups = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (size, hidden)
    for layer in range(config["num_hidden_layers"]):
        own: dict[str, tuple[int, ...]] = {
            f"self_attn.{name}_proj": (groups if name in "kv" else heads, hidden) for name in "qkv"
        }
        own |= {"self_attn.o_proj": (hidden, heads), "mlp.down_proj": (hidden, inner)}
        own |= {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        own |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        if config["model_type"] == "qwen3":
            own |= {f"self_attn.{name}_norm": (config["head_dim"],) for name in "qk"}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(20260620)
    weights = {}
    for name, shape in shapes.items():
        found = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator, device=device) * 0.06
        weights[name] = found.to(getattr(torch, config["torch_dtype"])).cpu()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _tokenizer(size: int) -> dict[str, Any]:
    """The `tokenizers` library's format, with the parts that stay empty."""
    vocabulary = {f"w{token}": token for token in range(size)}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    return {"version": "1.0", **empty, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}


if __name__ == "__main__":
    main()
