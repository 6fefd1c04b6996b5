"""Makes a small model of DeepSeek-V2-Lite's shape with random weights: `python3 -m pd_engine.tiny_deepseek DIRECTORY TEXT [LAYERS HIDDEN]`.

Its attention is the published model's, head for head (MLA: 16 heads over one latent of 512 + 64 numbers a token), as are its
first dense layer and 64 experts of which each token takes six beside two shared ones; layers and widths are fewer. Weights are
written under the published checkpoint's names. As in `tiny_model`, a standard deviation of 0.06 makes the output depend on the KV.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pd_engine.tiny_model import SEED, VOCABULARY, run

DEVIATION = 0.06


def config(layers: int, hidden: int) -> dict[str, Any]:
    """The published config.json but for `num_hidden_layers`, widths and vocabulary."""
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": DEVIATION,
        "intermediate_size": 3 * hidden,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": max(hidden // 4, 64),
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": layers,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "float16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": VOCABULARY,
    }


def shapes(c: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the checkpoint of config `c`; a one-dimensional one is a norm's weight."""
    hidden, vocabulary = c["hidden_size"], c["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for number in range(c["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield from ((f"{layer}.self_attn.{name}.weight", shape) for name, shape in _attention(c))
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        mlp = _dense(hidden, c["intermediate_size"]) if number < c["first_k_dense_replace"] else _experts(c)
        yield from ((f"{layer}.mlp.{name}.weight", shape) for name, shape in mlp)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def _attention(c: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, latent = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    plain, turned, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    yield "q_proj", (heads * (plain + turned), hidden)
    yield "kv_a_proj_with_mqa", (latent + turned, hidden)
    yield "kv_a_layernorm", (latent,)
    yield "kv_b_proj", (heads * (plain + value), latent)
    yield "o_proj", (hidden, heads * value)


def _dense(hidden: int, width: int, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}gate_proj", (width, hidden)
    yield f"{prefix}up_proj", (width, hidden)
    yield f"{prefix}down_proj", (hidden, width)


def _experts(c: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    yield "gate", (c["n_routed_experts"], hidden)
    for expert in range(c["n_routed_experts"]):
        yield from _dense(hidden, width, f"experts.{expert}.")
    yield from _dense(hidden, width * c["n_shared_experts"], "shared_experts.")


def make_weights(directory: Path, layers: int, hidden: int) -> int:
    """Draw and save the weights with their config; returns the number of parameters."""
    import torch  # noqa: PLC0415  vLLM image only
    from safetensors.torch import save_file  # noqa: PLC0415

    chosen = config(layers, hidden)
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in shapes(chosen):
        drawn = torch.randn(shape, generator=generator) * DEVIATION if len(shape) > 1 else torch.ones(shape)
        tensors[name] = drawn.to(torch.float16)
    (directory / "config.json").write_text(json.dumps(chosen, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


if __name__ == "__main__":
    sys.exit(run(make_weights, ("4", "512")))
