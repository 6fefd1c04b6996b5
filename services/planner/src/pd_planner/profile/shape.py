"""A model's shape: what a token costs in operations and bytes, from the numbers of its config.json."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from pd_analysis.words.language import told, tr


class ShapeError(ValueError):
    """A model's shape cannot be determined; the message says why."""


_Count = Annotated[int, msgspec.Meta(ge=1)]
_BITS: Final = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "bitsandbytes": 4}
# Which layer has full attention, where configs leave it out because transformers knows it.
_FULL_EVERY: Final = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
# Keys that config.json leaves out because they are the defaults of the model's class in transformers.
_DEFAULTS: Final[Mapping[str, Mapping[str, int]]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
}
# Classes of models that write no text.
_NO_WRITERS: Final = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "BertModel",
    "EmbeddingModel",
)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that matter here; the file has many more."""

    hidden_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    intermediate_size: _Count
    vocab_size: _Count
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
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
    is_encoder_decoder: bool = False
    architectures: list[str] = []
    layer_types: list[str] = []
    model_type: str = ""
    sliding_window: int | None = None
    sliding_window_pattern: int | str | None = None
    use_sliding_window: bool | None = None
    hybrid_override_pattern: str | None = None
    mamba_d_state: int | None = None
    linear_num_value_heads: int | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """The size and cost of a model.

    Attributes:
        weights_bytes: of all weights; `read_bytes`: of those that a decode step with a batch reads (without the input embedding).
        operations: a prompt token, floating-point, without attention; `pair_operations`: of attention, a pair of a token and one before it.
        kv_bytes: of one token's KV, over all layers.
        max_model_len: tokens of a prompt and its answer at most; 0 if the config does not say.
        window_tokens: as many tokens does a layer with a sliding window look back on; 0 if the model has none.
        window_share: such layers of all. The costs above count them as full attention.
    """

    name: str
    layers: int
    weights_bytes: float
    read_bytes: float
    operations: float
    pair_operations: float
    kv_bytes: int
    max_model_len: int = 0
    window_tokens: int = 0
    window_share: float = 0.0


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
    folder = path.is_dir()
    path = path / "config.json" if folder else path
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        fields = {**document, **(document.get("text_config") or {})}
        config = msgspec.convert({**_DEFAULTS.get(str(fields.get("model_type")), {}), **fields}, Config)
    except OSError as error:
        if folder:
            raise ShapeError(tr("model {name}: this folder has no config.json", name=model)) from error
        msg = tr("model {name}: no such file; known without one: {names}", name=model, names=", ".join(known_shapes()))
        raise ShapeError(msg) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = tr("model {name}: its config.json cannot be used: {reason}", name=model, reason=told(error))
        raise ShapeError(msg) from error
    if reason := _unknown(config):
        raise ShapeError(
            tr(
                "model {name}: {reason}, of which no profile can be computed: measure it (pd-plan calibrate)",
                name=model,
                reason=reason,
            )
        )
    return shape_of(path.parent.name if path.name == "config.json" else path.stem, config)


def _unknown(config: Config) -> str:
    """What a model has or is that this arithmetic does not know; empty if it knows all."""
    if config.is_encoder_decoder:
        return tr("it has an encoder and a decoder")
    if any(name.endswith(_NO_WRITERS) for name in config.architectures):
        return tr("it writes no text")
    recurrent = any("linear" in kind or "mamba" in kind for kind in config.layer_types)
    if recurrent or config.hybrid_override_pattern or config.mamba_d_state or config.linear_num_value_heads:
        return tr("it has layers without attention (Mamba or linear attention)")
    told = config.quantization_config
    if told and not _bits(told):
        return tr("its quantisation is unknown ({method})", method=told.get("quant_method"))
    return ""


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
    windowed = _layers_with_a_window(config)
    return Shape(
        name=name,
        layers=layers,
        weights_bytes=body * bytes_each + embedding * 2 * (1 if config.tie_word_embeddings else 2),
        read_bytes=body * bytes_each + embedding * 2,
        operations=2.0 * active,
        pair_operations=4.0 * width * layers,
        kv_bytes=2 * layers * kv_width,
        max_model_len=_max_model_len(config),
        window_tokens=(config.sliding_window or 0) if windowed else 0,
        window_share=windowed / layers,
    )


def _layers_with_a_window(config: Config) -> int:
    """Layers that look back on `sliding_window` tokens only: those that the config names, all but every so many-th, or all."""
    layers = config.num_hidden_layers
    if not config.sliding_window or config.use_sliding_window is False:
        return 0
    if config.layer_types:
        return sum(kind == "sliding_attention" for kind in config.layer_types[:layers])
    pattern = config.sliding_window_pattern or _FULL_EVERY.get(config.model_type)
    if isinstance(pattern, str):  # EXAONE 4's LLLG: local, local, local, global
        return sum(pattern[layer % len(pattern)] == "L" for layer in range(layers))
    return layers - layers // pattern if pattern else layers


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
    return (_bits(config.quantization_config or {}) or 16.0) / 8


def _bits(told: Mapping[str, Any]) -> float:
    """Bits of a quantised weight; 0 if that is not said."""
    groups = told.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    own = weights.get("num_bits") if isinstance(weights, Mapping) else None
    bits = told.get("bits") or own or _BITS.get(str(told.get("quant_method")), 0)
    return float(bits) if isinstance(bits, int | float) and bits > 0 else 0.0
