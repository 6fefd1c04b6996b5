"""Settings that ENGINE_ARGS must not undo, in any spelling."""

from typing import Any

import msgspec
import pytest

from pd_contracts.settings import load
from pd_engine.gpus import Gpus
from pd_engine.plan import RefusedError, plan
from pd_engine.settings import EngineSettings, Host

GPU = Host(vllm_version=(0, 23), address="10.0.0.5")
P2P = {"KV_CONNECTOR": "P2pConnector"}
NIXL = {"KV_CONNECTOR": "NixlConnector"}


def start(role: str, arguments: str, host: Host = GPU, **values: str) -> None:
    given = {"PD_ROLE": role, "MODEL": "org/model", "MAX_MODEL_LEN": "8192", "ENGINE_ARGS": arguments}
    given |= {"KV_CONNECTOR": "P2pNcclConnector", **values}  # which has the most that must not be undone
    plan(load(EngineSettings, given), host, {})


REFUSED: list[tuple[str, str, dict[str, str], str]] = [
    # where the engine is reached
    *[(role, "--port 9000", {}, "announced, probed and scraped at") for role in ("prefill", "decode", "combined")],
    ("decode", "--port=9000", NIXL, "set DECODE_HTTP_PORT"),
    ("combined", "--host 127.0.0.1", {}, "remove --host"),
    ("decode", "--uds /tmp/x", {}, "the proxy speaks HTTP over TCP"),
    ("combined", "--grpc", {}, "the proxy speaks HTTP over TCP"),
    ("combined", "--headless", {}, "the proxy speaks HTTP over TCP"),
    ("combined", "--api-server-count 0", {}, "the same as --headless"),
    ("prefill", "-asc=0", {}, "the same as --headless"),
    ("decode", "--ssl-keyfile k --ssl-certfile c", {}, "TLS"),
    ("combined", "--ssl_certfile=c", {}, "TLS"),
    ("combined", "--api-key secret", {}, "a key that the proxy does not have"),
    ("prefill", "--api_key secret other", NIXL, "a key that the proxy does not have"),
    ("decode", "--api-k=secret", {}, "a key that the proxy does not have"),
    ("combined", "--model other", {}, "--model other differs from the model that is announced: set MODEL instead"),
    ("combined", "--served-model-name other", {}, "set SERVED_MODEL_NAME"),
    # how many GPUs and hosts
    ("decode", "--tensor-parallel-size 2", {}, "prefill and decode need the same"),
    ("decode", "-tp 2", NIXL, "prefill and decode need the same"),
    ("decode", "-tp=2", NIXL, "prefill and decode need the same"),
    ("combined", "--tensor_parallel_size 2", {}, "Set only TENSOR_PARALLEL_SIZE"),
    ("prefill", "-tp 1", {"TENSOR_PARALLEL_SIZE": "2"}, "prefill and decode need the same"),
    ("decode", "--data-parallel-size 2", {}, "share a KV port"),
    ("decode", "-dp 2", NIXL, "share a KV port"),
    ("decode", "--pipeline-parallel-size 2", {}, "share a KV port"),
    ("prefill", "-pp 2", NIXL, "share a KV port"),
    ("decode", "-dcp 2", {}, "share a KV port"),
    ("prefill", "-pcp 2", {}, "share a KV port"),
    ("combined", "--nnodes 2 --node-rank 0", {}, "over several hosts"),
    ("combined", "--data-parallel-rank 0", {}, "start several instances"),
    ("decode", "--data-parallel-hybrid-lb", {}, "start several instances"),
    # how KV travels
    ("decode", "--kv-transfer-config.kv_port=1", P2P, "kv_port=22001"),
    ("prefill", "-pp 2", P2P, "share a KV port"),
    ("decode", "--block-size 64", P2P, "set BLOCK_SIZE"),
    ("decode", '--kv-transfer-config \'{"kv_connector": "NixlConnector"}\'', {}, "repeat all of it"),
    ("decode", "--kv-transfer-config.kv_role=kv_producer", {}, 'lacks kv_connector="P2pNcclConnector", kv_role="kv_consumer"'),
    ("prefill", "--kv-tr.kv_port=1", NIXL, "repeat all of it"),
    ("decode", "--kv-transfer-config nonsense", NIXL, "repeat all of it"),
    ("combined", '--kv-transfer-config \'{"kv_connector": "NixlConnector", "kv_role": "kv_both"}\'', {}, "hands over no KV"),
    ("decode", "--kv-offloading-size 10", NIXL, "another connector"),
    ("decode", "--block-size 64", NIXL, "set BLOCK_SIZE"),
    ("prefill", "--max-model-len -1", {"MAX_MODEL_LEN": "8192"}, "set MAX_MODEL_LEN instead"),
    ("decode", "--max-model-len 100", NIXL, "set MAX_MODEL_LEN instead"),
    ("decode", "--dtype float16", {}, "set DTYPE instead"),
    ("decode", "--kv-cache-dtype fp8", P2P, "set KV_CACHE_DTYPE instead"),
    ("prefill", "--kv-cache-dtype=fp8_e4m3", NIXL, "set KV_CACHE_DTYPE instead"),
    # draft models, whose KV lies beside the model's
    *[
        (role, f"{spelling}", connector, "a draft model has KV of its own")
        for role in ("prefill", "decode")
        for connector in ({}, P2P, NIXL, {"KV_CONNECTOR": "ExampleConnector"})
        for spelling in (
            '--speculative-config \'{"method": "eagle3", "model": "draft", "num_speculative_tokens": 3}\'',
            '--speculative_config=\'{"method": "mtp", "num_speculative_tokens": 1}\'',
            '--speculative-c \'{"model": "draft", "num_speculative_tokens": 3}\'',
            '-sc \'{"model": "draft"}\'',
            '-sc=\'{"model": "draft"}\'',
            "-sc.model=draft -sc.num_speculative_tokens=3",
            "--speculative-config.method draft_model",
            "--spec-model draft --spec-tokens 3",
            "--spec-method mtp",
            "--spec-tokens 3",
            "-sc.method=ngram -sc.method=eagle",
            "--spec-method ngram --spec-model package.Proposer",
        )
    ],
    ("combined", "--spec-method mtp", {"KV_BOTH": "true", **P2P}, "a draft model has KV of its own"),
    ("decode", "--speculative-model draft --num-speculative-tokens 3", NIXL, "is an option of older versions, which --speculative-config replaced"),
    ("combined", "--num_speculative_tokens=3", {}, "is an option of older versions"),
    ("decode", "--runner pooling", NIXL, "only a generative model"),
    ("prefill", "--convert embed", {}, "only a generative model"),
    # P2pNccl's prefill
    ("prefill", "--enable-chunked-prefill --max-num-batched-tokens 2048", {}, "a prompt cut into chunks crashes"),
    ("prefill", "--enable_chunked_prefill", {}, "a prompt cut into chunks crashes"),
    ("prefill", "--enable-chunked-pre", {}, "a prompt cut into chunks crashes"),
    ("prefill", "--no-disable-chunked-mm-input --enable-chunked-p", {}, "a prompt cut into chunks crashes"),
    ("prefill", "--max-num-batched-tokens 2048", {}, "a whole prompt must fit into one step"),
    ("prefill", "--max-num-batched-tokens=2k", {}, "a whole prompt must fit into one step"),
    ("prefill", "--max-model-len 16K", {"MAX_NUM_BATCHED_TOKENS": "8192"}, "MAX_NUM_BATCHED_TOKENS=8192 is less than ENGINE_ARGS: --max-model-len 16K"),
    ("prefill", "--long-prefill-token-threshold 512", {}, "a prompt cut into chunks crashes"),
    ("prefill", "--no-enforce-eager", {}, "never sends its KV"),
    ("prefill", "--no_enforce_eager", {}, "never sends its KV"),
    ("prefill", "--no-enforce", {}, "never sends its KV"),
    ("prefill", "--enable-prefix-caching", {}, "never freed after"),
    # P2pNccl's decode
    ("decode", "--enable-prefix-caching", {}, "never freed after"),
    ("decode", "--no-disable-hybrid-kv-cache-manager --enable-prefix-c", {}, "never freed after"),
    ("decode", "--compilation-config.cudagraph_mode=full_and_piecewise", {}, "skip loading KV"),
    ("decode", "-cc '{}'", {}, "skip loading KV"),
    ("decode", "--gpu-memory-utilization 0.95", {}, "leaves decode no room"),
    ("decode", "--gpu_memory_utilization=.95", {}, "leaves decode no room"),
    ("decode", "--gpu-mem 0.95", {}, "leaves decode no room"),
    ("decode", "--gpu-memory-utilization 0.5 --gpu-memory-utilization 0.95", {}, "leaves decode no room"),
    ("decode", "--device-memory-utilization 0.95", {}, "leaves decode no room"),
    ("decode", "--num-gpu-blocks-override 100000", {}, "leaves decode no room|needs room for KV"),
    # what vLLM would not understand
    ("combined", "--data-parallel-s 2", {}, "cannot be read as options of vllm serve"),
    ("combined", "--port", {}, "cannot be read as options of vllm serve"),
]  # fmt: skip


@pytest.mark.parametrize(("role", "arguments", "values", "sentence"), REFUSED)
def test_what_undoes_a_guard_is_refused(role: str, arguments: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RefusedError, match=sentence):
        start(role, arguments, **values)


@pytest.mark.parametrize(
    ("role", "arguments", "values"),
    [
        ("combined", "--enable-prefix-caching --enable-chunked-prefill --gpu-memory-utilization 0.95", {}),
        ("combined", "--no-enforce-eager -cc.cudagraph_mode=FULL", {}),
        ("combined", "--pipeline-parallel-size 2 --data-parallel-size 2", {}),
        ("combined", "--kv-offloading-size 10 --block-size 64 --runner pooling", {}),
        ("decode", "--enable-chunked-prefill --gpu-memory-utilization 0.95 --enable-prefix-caching", NIXL),
        ("decode", "--gpu-memory-utilization 0.95 --gpu-memory-utilization 0.6", {}),
        ("decode", "--kv-cache-memory-bytes 3221225472", {}),
        ("decode", "-cc.cudagraph_mode=full_decode_only", {}),
        ("decode", "--enforce-eager", {}),
        ("decode", "--enable-chunked-prefill", {}),
        ("prefill", "--gpu-memory-utilization 0.95 --seed 7 --no-disable-chunked-mm-input", {}),
        ("prefill", "--max-num-batched-tokens 16k", {}),
        ("prefill", "-cc.cudagraph_mode=NONE --no-enforce-eager", {}),
        ("decode", "--port 20005 --host 0.0.0.0 -tp 1 -dp 1 -pp=1 --nnodes 1", {}),
        ("decode", "--served-model-name org/model other", NIXL),
        ("decode", "--max-model-len 8K", NIXL),
        ("decode", "--kv-transfer-config '{\"kv_connector\": \"NixlConnector\", \"kv_role\": \"kv_consumer\", \"kv_buffer_device\": \"cpu\"}'", NIXL),
        ("combined", "--spec-method mtp --spec-tokens 1", {}),
        ("decode", '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}\'', {}),
        ("decode", '-sc \'{"model": "[ngram]", "num_speculative_tokens": 3}\'', P2P),
        ("prefill", "--spec-method suffix", NIXL),
        ("decode", "-sc.method=ngram_gpu", P2P),
        ("decode", "-sc.method=medusa -sc.model=heads", NIXL),
        ("decode", "--option-of-a-later-vllm 5 --hf-overrides '{\"a\": 1}' --lora-modules a=b c=d", NIXL),
    ],
)  # fmt: skip
def test_similar_arguments_that_are_allowed_start(role: str, arguments: str, values: dict[str, Any]) -> None:
    start(role, arguments, **values)


def test_a_cache_of_a_fixed_size_must_leave_room_on_the_gpu_that_is_there() -> None:
    small = msgspec.structs.replace(GPU, gpus=Gpus(memory_bytes=40 * 10**9))

    start("decode", "--kv-cache-memory-bytes 20g", small)
    start("prefill", "--kv-cache-memory-bytes 36g", small)
    with pytest.raises(RefusedError, match=r"more than 0\.8 of the GPU's"):
        start("decode", "--kv-cache-memory-bytes 36g", small)


def test_a_key_and_tls_that_the_proxy_is_told_of_start() -> None:
    told = {"ENGINE_API_KEY": "secret", "ENGINE_TLS_CERT_FILE": "/c", "ENGINE_TLS_KEY_FILE": "/k"}
    settings = load(EngineSettings, {"PD_ROLE": "combined", "MODEL": "m", **told})

    launch = plan(settings, GPU, {"VLLM_API_KEY": "secret"})

    assert launch.environment["VLLM_API_KEY"] == "secret"
    assert launch.arguments[launch.arguments.index("--ssl-certfile") :][:4] == [
        "--ssl-certfile",
        "/c",
        "--ssl-keyfile",
        "/k",
    ]
    assert "secret" not in launch.arguments


def test_half_of_what_tls_needs_is_refused() -> None:
    with pytest.raises(RefusedError, match="belong together"):
        start("decode", "", ENGINE_TLS_CERT_FILE="/c")


def config(**values: Any) -> Host:
    return Host(vllm_version=(0, 23), address="10.0.0.5", config={k.replace("_", "-"): v for k, v in values.items()})


@pytest.mark.parametrize(
    ("role", "host", "sentence"),
    [
        ("combined", config(api_key="secret"), "a key that the proxy does not have"),
        ("decode", config(pipeline_parallel_size=2), "share a KV port"),
        ("prefill", config(long_prefill_token_threshold=512), "a prompt cut into chunks crashes"),
        ("decode", config(kv_offloading_size=4), "another connector"),
        ("combined", config(ssl_keyfile="k", ssl_certfile="c"), "TLS"),
    ],
)
def test_a_config_file_undoes_no_guard(role: str, host: Host, sentence: str) -> None:
    with pytest.raises(RefusedError, match=sentence):
        start(role, "--config vllm.yaml", host)


def test_a_config_file_cannot_win_over_what_the_settings_say() -> None:
    start("decode", "--config vllm.yaml", config(port=9000, gpu_memory_utilization=0.95, enable_prefix_caching=True))


def test_a_config_file_that_cannot_be_read_is_said_to_be_so() -> None:
    host = Host(vllm_version=(0, 23), address="10.0.0.5", config_problem="No such file")

    with pytest.raises(RefusedError, match=r"--config vllm\.yaml cannot be read: No such file"):
        start("decode", "--config vllm.yaml", host)


@pytest.mark.parametrize(
    "arguments", ["--config=vllm.yaml", "--config a.yaml --config b.yaml", "--config a.yaml --config=b.yaml"]
)
def test_a_config_file_that_vllm_would_not_read_is_refused(arguments: str) -> None:
    """vLLM ignores the first of these without a word, and ends with an assertion at the second."""
    with pytest.raises(RefusedError, match="only as two words: --config FILE"):
        start("decode", arguments)


@pytest.mark.parametrize("name", ["vllm.json", "vllm", "vllm.yaml.bak"])
def test_a_config_file_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match=r"end in \.yaml or \.yml; rename it"):
        start("decode", f"--config {name}", config(seed=1))


@pytest.mark.parametrize("variable", [{"VLLM_API_KEY": "secret"}, {"VLLM_DP_SIZE": "2"}])
def test_vllms_own_variables_undo_nothing_either(variable: dict[str, Any]) -> None:
    settings = load(EngineSettings, {"PD_ROLE": "combined", "MODEL": "m"})

    with pytest.raises(RefusedError, match=next(iter(variable))):
        plan(settings, GPU, variable)
    plan(settings, GPU, dict.fromkeys(variable, ""))


def test_a_cache_of_a_fixed_size_must_leave_room_for_the_pool_of_p2pconnector() -> None:
    small = msgspec.structs.replace(GPU, gpus=Gpus(memory_bytes=40 * 10**9))
    pool = {"KV_LANDING_BYTES": "4000000000"}

    start("decode", "--kv-cache-memory-bytes 20g --gpu-memory-utilization 0.95", small, **P2P, **pool)
    for spelling in ("--kv-cache-memory-bytes 36g", "--kv_cache_mem=36G", "--kv-cache-memory-bytes=36000000000"):
        with pytest.raises(RefusedError, match=r"--kv-cache-memory-bytes .* and KV_LANDING_BYTES=4000000000 together"):
            start("decode", spelling, small, **P2P, **pool)
