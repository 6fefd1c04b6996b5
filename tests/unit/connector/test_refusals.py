"""The connector refuses what it cannot do, and the message gives the reason and the remedy: at start, or when two engines meet."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pd_connector.engine import compat, worker
from pd_connector.engine.compat import RefusalError
from pd_connector.engine.worker import WorkerHalf
from pd_connector.memory.cumem import CudaError
from pd_connector.memory.layout import Layer, layout_of
from pd_connector.net.handshake import misfit
from pd_connector.settings import Settings
from pd_engine.alike import WITHOUT_KV


class Spec:
    """vLLM's description of a group of layers; its class is what tells attention from state."""

    block_size = 16


class FullAttentionSpec(Spec): ...


class MLAAttentionSpec(Spec): ...


class SlidingWindowSpec(Spec): ...


class MambaSpec(Spec): ...


def engine(*specs: type[Spec], dtype: str = "auto", **parallel: Any) -> tuple[Any, Any]:
    """vLLM's configuration, as far as the connector looks at it."""
    model = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "_name_or_path": "/models/tiny"}
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**{"tensor_parallel_size": 1, "pipeline_parallel_size": 1, **parallel}),
        kv_transfer_config=SimpleNamespace(
            engine_id="e", kv_port=1, is_kv_producer=True, is_kv_consumer=True, kv_load_failure_policy="recompute"
        ),
        model_config=SimpleNamespace(hf_config=SimpleNamespace(to_dict=lambda: model)),
        cache_config=SimpleNamespace(cache_dtype=dtype),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=512),
    )
    groups = [SimpleNamespace(kv_cache_spec=spec()) for spec in specs or (FullAttentionSpec,)]
    return config, SimpleNamespace(num_blocks=10, kv_cache_groups=groups)


@pytest.mark.parametrize(
    ("parallel", "advice"),
    [
        ({"pipeline_parallel_size": 2}, "tensor parallelism"),
        ({"data_parallel_size": 2}, "one engine for each copy"),
        ({"decode_context_parallel_size": 2}, "leave it at 1"),
        ({"prefill_context_parallel_size": 2}, "leave it at 1"),
    ],
)
def test_ways_to_divide_a_model_that_it_does_not_know(parallel: dict[str, Any], advice: str) -> None:
    [(name, value)] = parallel.items()

    with pytest.raises(RefusalError, match=rf"{name}={value}.*{advice}"):
        compat.read(*engine(**parallel), "")


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("model_config", "enable_prompt_embeds", True),
        ("model_config", "logits_processors", ["mine:Processor"]),
        ("", "speculative_config", SimpleNamespace(method="ngram", draft_model_config=None)),
        ("", "watermark_config", SimpleNamespace()),
    ],
)
def test_others_that_read_the_ids_of_a_steps_tokens(where: str, name: str, value: Any) -> None:
    config, kv = engine()
    assert compat.read(config, kv, "").ids_alone
    setattr(getattr(config, where) if where else config, name, value)
    assert not compat.read(config, kv, "").ids_alone


def test_an_installed_logits_processor_reads_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "mine-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[vllm.logits_processors]\nmine = mine:Processor\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not compat.read(*engine(), "").ids_alone


class GPUModelRunner:
    """vLLM's, as far as the connector looks at it."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update({"supports_mm_inputs": False, **parts})

    def initialize(self) -> Any:
        return compat.input_ids()


class DefaultModelState:
    """vLLM's, which passes the ids on as they are."""


class NgramModelState:
    """One that makes something of the ids before the step."""


class CPUModelRunner(GPUModelRunner):
    """Its child."""


def test_where_the_ids_of_a_steps_tokens_are() -> None:
    buffers = SimpleNamespace(input_ids="V2's")
    v2, v1 = {"input_buffers": buffers, "input_ids": None}, {"input_ids": SimpleNamespace(gpu="V1's")}
    assert GPUModelRunner(**v2, model_state=DefaultModelState()).initialize() == "V2's"
    assert GPUModelRunner(**v2, model_state=NgramModelState()).initialize() is None
    assert CPUModelRunner(**v1).initialize() == "V1's"
    assert CPUModelRunner(**v1, supports_mm_inputs=True).initialize() is None
    assert GPUModelRunner().initialize() is None
    assert compat.input_ids() is None, "nobody registers a cache"


def test_layers_that_a_step_passes_more_than_once() -> None:
    plain, kv = engine()
    halves, _ = engine(use_ubatching=True)
    speculates, _ = engine()
    plain.speculative_config, speculates.speculative_config = None, SimpleNamespace(method="ngram")

    assert [compat.read(config, kv, "").layers_once for config in (plain, halves, speculates)] == [True, False, False]


@pytest.mark.parametrize(
    "specs", [(FullAttentionSpec, MambaSpec), (FullAttentionSpec, SlidingWindowSpec), (MambaSpec,)]
)
def test_models_with_several_kinds_of_layers(specs: tuple[type[Spec], ...]) -> None:
    with pytest.raises(RefusalError, match=f"{len(specs)} groups of layers.*{specs[-1].__name__}"):
        compat.read(*engine(*specs), "")


def test_state_that_is_no_kv() -> None:
    with pytest.raises(RefusalError, match=r"state of model\.layers\.0"):
        worker.layers({"model.layers.0": [object(), object()]})


@pytest.mark.parametrize("spec", [FullAttentionSpec, MLAAttentionSpec])
@pytest.mark.parametrize("dtype", ["auto", "fp8", "fp8_e4m3"])
def test_gqa_and_mla_with_any_dtype_are_taken(spec: type[Spec], dtype: str) -> None:
    facts = compat.read(*engine(spec, dtype=dtype), "")

    assert (facts.block_size, facts.blocks, facts.ranks) == (16, 10, 1)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (engine(tensor_parallel_size=2), "tensor parallel size is 2 there and 1 here"),
        (engine(dtype="fp8"), "KV cache dtype is fp8 there and auto here"),
    ],
)
def test_engines_that_differ_are_told_in_what(other: tuple[Any, Any], named: str) -> None:
    mine, theirs = compat.read(*engine(), "").schema, compat.read(*other, "").schema

    assert misfit(mine, theirs) == named
    assert misfit(mine, mine) == ""


def test_models_of_one_shape_are_told_apart_by_a_tag() -> None:
    a, b = compat.read(*engine(), "a").schema, compat.read(*engine(), "b").schema

    assert misfit(a, b).startswith("model is Qwen3ForCausalLM-")
    config, caches = engine()
    config.model_config.hf_config = SimpleNamespace(to_dict=lambda: {"architectures": ["Qwen3ForCausalLM"]})
    assert "model is" in misfit(compat.read(*engine(), "").schema, compat.read(config, caches, "").schema)


def test_kv_of_another_dtype_lies_otherwise() -> None:
    def of(item_bytes: int, dtype: str) -> str:
        return layout_of([Layer("a", 4096, (6, 8, 16, 256), (32768, 4096, 256, 1), item_bytes, dtype)], 6).digest

    assert len({of(2, "float16"), of(2, "bfloat16"), of(1, "float8_e4m3fn")}) == 3
    assert layout_of([Layer("a", 0, (6, 8), (8, 1), 1, "float8_e4m3fn")], 6).row_bytes == 8


class Tensor:
    """A KV cache in the host's memory, as much of torch's tensor as is looked at."""

    device = SimpleNamespace(type="cpu")
    dtype = "float32"

    def __init__(self) -> None:
        self._memory = (ctypes.c_ubyte * (10 * 8 * 4))()
        self.shape = (10, 8)

    def data_ptr(self) -> int:
        return ctypes.addressof(self._memory)

    def stride(self) -> tuple[int, ...]:
        return (8, 1)

    def element_size(self) -> int:
        return 4


def test_an_engine_that_has_none_of_its_transports_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "tensor_rank", lambda: 0)
    half = WorkerHalf(compat.read(*engine(), ""), Settings(host="127.0.0.1", transports=("vmm",)))

    with pytest.raises(RefusalError, match=r"none of `transports` \(vmm\).*available: tcp"):
        half.register({"a": Tensor()})


def test_a_gpu_that_is_not_seen_is_named_as_the_cause() -> None:
    error = CudaError("cuMemImportFromShareableHandle", 101, "CUDA_ERROR_INVALID_DEVICE")

    assert "CUDA_VISIBLE_DEVICES" in str(error)
    assert "CUDA_VISIBLE_DEVICES" not in str(CudaError("cuMemMap", 101, "CUDA_ERROR_INVALID_DEVICE"))


def drafting(method: str, model: str = "draft") -> dict[str, str]:
    """The schema of an engine whose tokens a draft model guesses."""
    config, cache = engine()
    hf = {"architectures": ["LlamaEagle"], "name": model}
    config.speculative_config = SimpleNamespace(
        method=method, draft_model_config=SimpleNamespace(hf_config=SimpleNamespace(to_dict=lambda: hf))
    )
    return compat.read(config, cache, "").schema


def test_engines_with_unlike_draft_models_say_so() -> None:
    plain = compat.read(*engine(), "").schema
    assert misfit(plain, drafting("eagle")).startswith("draft model is eagle LlamaEagle-")
    assert misfit(plain, drafting("eagle")).endswith(" there and unknown here")
    assert misfit(drafting("eagle", "a"), drafting("eagle", "b")).startswith("draft model is eagle LlamaEagle-")
    assert not misfit(drafting("eagle"), drafting("eagle"))


@pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix", "medusa"])
def test_guesses_without_kv_may_differ(method: str) -> None:
    assert not misfit(compat.read(*engine(), "").schema, drafting(method))


def test_engine_and_connector_know_the_same_methods_without_kv() -> None:
    """The connector's wheel cannot import the engine's list."""
    assert compat._DRAFTS_WITHOUT_KV == WITHOUT_KV
