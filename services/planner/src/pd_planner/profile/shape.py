"""A model's shape: what a token costs in operations and bytes, from the numbers of its config.json."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from pd_analysis.words.language import tr


class ShapeError(ValueError):
    """A model's shape cannot be determined; the message says why."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that matter here; the file has many more."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    num_experts: int | None = None
    num_local_experts: int | None = None
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    quantization_config: dict[str, Any] | None = None
    max_position_embeddings: int | None = None
    rope_scaling: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """The size and cost of a model.

    Attributes:
        weights_bytes: of all weights; `read_bytes`: of those that a decode step with a batch reads (without the input embedding).
        operations: a prompt token, floating-point, without attention; `pair_operations`: of attention, a pair of a token and one before it.
        kv_bytes: of one token's KV, over all layers.
        max_model_len: tokens of a prompt and its answer at most; 0 if the config does not say.
    """

    name: str
    layers: int
    weights_bytes: float
    read_bytes: float
    operations: float
    pair_operations: float
    kv_bytes: int
    max_model_len: int = 0


def known_shapes() -> list[str]:
    return sorted(_shipped())


def read_shape(model: str) -> Shape:
    """The shape of a model by its name here, or by the path of its config.json or of the folder that holds it.

    Raises:
        ShapeError: if there is no such file, or it is not the config of a transformer.
    """
    shipped = _shipped()
    if model.lower() in shipped:
        return shape_of(model.lower(), msgspec.convert(shipped[model.lower()], Config))
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        config = msgspec.convert({**document, **(document.get("text_config") or {})}, Config)
    except OSError as error:
        msg = tr("model {name}: no such file; known without one: {names}", name=model, names=", ".join(known_shapes()))
        raise ShapeError(msg) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = tr("model {name}: not the config.json of a transformer: {reason}", name=model, reason=error)
        raise ShapeError(msg) from error
    return shape_of(path.parent.name, config)


def _shipped() -> dict[str, dict[str, Any]]:
    text = (resources.files(__package__) / "shapes.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def shape_of(name: str, config: Config) -> Shape:
    """Count weights: attention, the feed-forward part or its experts, and the output layer; norms and biases are left out."""
    size, layers = config.hidden_size, config.num_hidden_layers
    head = config.head_dim or size // config.num_attention_heads
    width = config.num_attention_heads * head
    keys = (config.num_key_value_heads or config.num_attention_heads) * head
    attention = 2 * size * width + 2 * size * keys
    every, used = _feed_forward(config)
    embedding = config.vocab_size * size
    body, active = layers * (attention + every), layers * (attention + used)
    bytes_each = _weight_bytes(config)
    latent = config.kv_lora_rank
    kv_width = latent + (config.qk_rope_head_dim or 0) if latent else 2 * keys
    return Shape(
        name=name,
        layers=layers,
        weights_bytes=body * bytes_each + embedding * 2 * (1 if config.tie_word_embeddings else 2),
        read_bytes=body * bytes_each + embedding * 2,
        operations=2.0 * active,
        pair_operations=4.0 * width * layers,
        kv_bytes=2 * layers * kv_width,
        max_model_len=_max_model_len(config),
    )


def _max_model_len(config: Config) -> int:
    """As vLLM finds it where no --max-model-len is given; of the ways to scale positions only YaRN's is written as a factor on top."""
    scaling = config.rope_scaling or {}
    own = config.max_position_embeddings or 0
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return own
    return int(float(scaling.get("factor", 1.0)) * int(scaling.get("original_max_position_embeddings", own)))


def _feed_forward(config: Config) -> tuple[int, int]:
    """Weights of a layer's feed-forward part: all, and those that one token uses."""
    experts = config.num_experts or config.num_local_experts or config.n_routed_experts
    dense = 3 * config.hidden_size * config.intermediate_size
    if not experts:
        return dense, dense
    one = 3 * config.hidden_size * (config.moe_intermediate_size or config.intermediate_size)
    shared = config.n_shared_experts or 0
    return (experts + shared) * one, ((config.num_experts_per_tok or 1) + shared) * one


def _weight_bytes(config: Config) -> float:
    """Bytes of a weight; 2 unless the config says that it is quantised."""
    told = config.quantization_config or {}
    bits = told.get("bits") or {"fp8": 8, "mxfp4": 4, "bitsandbytes": 4}.get(str(told.get("quant_method")), 16)
    return float(bits) / 8
