"""The vLLM command for a role and an environment."""

import json
from typing import Any

import pytest

from pd_connector import settings as connector_settings
from pd_contracts.names import Connector, Role
from pd_contracts.settings import load
from pd_engine.gpus import Gpus
from pd_engine.plan import CPU_POOL_BYTES, UNKNOWN_GPU_MEMORY, Launch, RefusedError, plan
from pd_engine.settings import EngineSettings, Host

GPU = Host(vllm_version=(0, 23), address="10.0.0.5")
CPU = Host(vllm_version=(0, 32), address="10.0.0.5")


def settings(role: str, **values: str) -> EngineSettings:
    """vLLM's own P2P NCCL, which needs the most care, unless another connector is said."""
    return load(EngineSettings, {"PD_ROLE": role, "MODEL": "org/model", "KV_CONNECTOR": "P2pNcclConnector", **values})


def launch(role: str, host: Host = GPU, **values: str) -> Launch:
    return plan(settings(role, **values), host, {})


def after(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def transfer(result: Launch) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(after(result.arguments, "--kv-transfer-config"))
    return config


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_p2p_nccl_sets_what_it_cannot_work_without(role: str) -> None:
    result = launch(role)

    assert result.environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert result.environment["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] == "1"
    assert result.environment["VLLM_HOST_IP"] == "10.0.0.5"
    extra = transfer(result)["kv_connector_extra_config"]
    assert extra["mem_pool_size_gb"] == "1"
    assert extra["proxy_port"] == "30001"  # a string: the connector concatenates it
    assert extra["http_port"] == after(result.arguments, "--port")
    assert "--no-enable-prefix-caching" in result.arguments
    assert not result.announce  # this connector pings by itself


def test_p2p_nccl_prefill_never_cuts_a_prompt_nor_replays_a_graph() -> None:
    result = launch("prefill", MAX_MODEL_LEN="8192")

    assert "--enforce-eager" in result.arguments
    assert "--no-enable-chunked-prefill" in result.arguments
    assert int(after(result.arguments, "--max-num-batched-tokens")) >= 8192
    assert transfer(result)["kv_role"] == "kv_producer"


def test_p2p_nccl_goes_without_prefix_caching() -> None:
    assert "--no-enable-prefix-caching" in launch("decode", PREFIX_CACHING="on").arguments


def test_p2p_nccl_decode_keeps_graphs_and_leaves_room_for_arriving_kv() -> None:
    result = launch("decode")

    assert "--enforce-eager" not in result.arguments
    assert json.loads(after(result.arguments, "--compilation-config")) == {"cudagraph_mode": "FULL_DECODE_ONLY"}
    assert float(after(result.arguments, "--gpu-memory-utilization")) <= 0.7
    assert transfer(result)["kv_role"] == "kv_consumer"
    assert transfer(result)["kv_buffer_size"] == 8e9


def test_the_guard_against_the_v2_model_runner_goes_only_by_its_own_name() -> None:
    bare = settings("decode", GUARD_MODEL_RUNNER="off")

    for environment in ({}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}):
        result = plan(bare, GPU, environment)
        assert "VLLM_USE_V2_MODEL_RUNNER" not in result.environment  # vLLM sees what the user has set, or nothing
        assert result.environment["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] == "1"


def test_prefix_caching_stays_off_with_p2p_nccl_even_if_asked_for() -> None:
    assert "--enable-prefix-caching" not in launch("decode", PREFIX_CACHING="on").arguments
    assert "--enable-prefix-caching" in launch("combined", PREFIX_CACHING="on").arguments


def test_a_combined_engine_is_plain_vllm_that_is_announced() -> None:
    result = launch("combined")

    assert "--kv-transfer-config" not in result.arguments
    assert "VLLM_USE_V2_MODEL_RUNNER" not in result.environment
    assert result.announce


def test_nixl_tells_the_other_side_an_address_it_can_reach() -> None:
    result = launch("prefill", KV_CONNECTOR="NixlConnector")

    assert result.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.5"
    assert result.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "21001"
    assert transfer(result) == {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
    assert result.announce


def test_nixl_may_read_gpu_memory_without_nvlink_unless_somebody_says_otherwise() -> None:
    name = "UCX_CUDA_IPC_ENABLE_GET_ZCOPY"
    nixl = settings("decode", KV_CONNECTOR="NixlConnector")

    assert plan(nixl, GPU, {}).environment[name] == plan(nixl, GPU, {name: ""}).environment[name] == "on"
    assert name not in plan(nixl, GPU, {name: "off"}).environment
    assert name not in launch("decode").environment
    assert name not in launch("combined", KV_CONNECTOR="NixlConnector").environment


def test_nixl_on_the_cpu_goes_over_tcp() -> None:
    result = launch("decode", CPU, KV_CONNECTOR="NixlConnector", ENGINE_DEVICE="cpu")

    assert result.environment["UCX_TLS"] == "tcp"
    assert "UCX_CUDA_IPC_ENABLE_GET_ZCOPY" not in result.environment
    assert transfer(result)["kv_buffer_device"] == "cpu"


def test_the_way_between_hosts_is_handed_on_and_an_empty_one_taken_away() -> None:
    told = {"NCCL_SOCKET_IFNAME": "eth1", "UCX_NET_DEVICES": "mlx5_0:1", "UCX_TLS": "", "GLOO_SOCKET_IFNAME": ""}

    result = plan(settings("prefill", KV_CONNECTOR="NixlConnector", **told), GPU, told)

    assert result.environment["NCCL_SOCKET_IFNAME"] == "eth1"
    assert result.environment["UCX_NET_DEVICES"] == "mlx5_0:1"
    # NCCL and UCX take an empty variable for a choice of nothing.
    assert sorted(result.unset) == ["GLOO_SOCKET_IFNAME", "UCX_TLS"]


def test_transports_that_were_chosen_win_over_the_ones_for_the_cpu() -> None:
    assert launch("decode", CPU, KV_CONNECTOR="NixlConnector", ENGINE_DEVICE="cpu", UCX_TLS="tcp,sm").environment[
        "UCX_TLS"
    ] == ("tcp,sm")


@pytest.mark.parametrize(("role", "cleans"), [("prefill", True), ("decode", False)])
def test_the_example_connector_shares_a_folder_that_prefill_cleans(role: str, cleans: bool) -> None:
    result = launch(role, CPU, KV_CONNECTOR="ExampleConnector", ENGINE_DEVICE="cpu", KV_SHARED_PATH="/kv")

    config = transfer(result)
    assert (config["kv_role"], config["kv_connector_extra_config"]) == ("kv_both", {"shared_storage_path": "/kv"})
    assert config["kv_connector_module_path"] == "pd_engine.example_connector"
    assert result.clean_shared_path is cleans
    assert result.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_on_the_cpu_blocks_are_small_enough_for_short_prompts_to_travel() -> None:
    assert after(launch("combined", CPU, ENGINE_DEVICE="cpu").arguments, "--block-size") == "32"
    assert after(launch("combined", CPU, ENGINE_DEVICE="cpu", BLOCK_SIZE="64").arguments, "--block-size") == "64"
    assert "--block-size" not in launch("combined").arguments


def test_instances_of_a_role_have_ports_of_their_own() -> None:
    result = launch("decode", INSTANCE="2")

    assert after(result.arguments, "--port") == "20007"
    assert transfer(result)["kv_port"] == 22201


def test_further_arguments_come_last_and_are_split_as_in_a_shell() -> None:
    assert launch("combined", ENGINE_ARGS="--seed 7 --hf-overrides '{\"a\": 1}'").arguments[-4:] == [
        "--seed",
        "7",
        "--hf-overrides",
        '{"a": 1}',
    ]


@pytest.mark.parametrize(
    ("role", "values", "host", "environment", "sentence"),
    [
        ("decode", {}, CPU, {}, "removed after vLLM 0.23"),
        ("decode", {}, GPU, {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "VLLM_USE_V2_MODEL_RUNNER must be 0"),
        ("prefill", {}, GPU, {"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "0"}, "RANDOMIZATION must be 1"),
        ("prefill", {}, GPU, {"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "true"}, "RANDOMIZATION must be 1"),
        ("combined", {"MODEL": ""}, GPU, {}, "MODEL is not set"),
        ("combined", {"ENGINE_ARGS": "--served 'a"}, GPU, {}, "ENGINE_ARGS=.* is not quoted as in a shell: No closing"),
        ("prefill", {"VLLM_HOST_IP": "decode"}, GPU, {}, "not a numeric IPv4 address"),
        ("prefill", {"VLLM_HOST_IP": "0.0.0.0"}, GPU, {}, "not a numeric IPv4 address"),
        ("prefill", {"ENGINE_DEVICE": "cpu"}, GPU, {}, "needs NVIDIA GPUs"),
        ("prefill", {"MAX_MODEL_LEN": "8192", "MAX_NUM_BATCHED_TOKENS": "2048"}, GPU, {}, "a whole prompt must fit"),
        ("decode", {"GPU_MEMORY_UTILIZATION": "0.95"}, GPU, {}, "leaves decode no room"),
    ],
)
def test_impossible_combinations_are_refused_with_a_sentence(
    role: str, values: dict[str, str], host: Host, environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(RefusedError, match=sentence):
        plan(settings(role, **values), host, environment)


def test_a_missing_model_folder_is_refused() -> None:
    missing = Host(vllm_version=(0, 23), address="10.0.0.5", model_exists=False)

    with pytest.raises(RefusedError, match="does not exist"):
        plan(settings("combined", MODEL="/models/none"), missing, {})


@pytest.mark.parametrize(
    ("connector", "host", "sentence"),
    [
        (Connector.NIXL, Host(vllm_version=(0, 23), address="10.0.0.5", has_nixl=False), "no nixl package"),
        (Connector.EXAMPLE, Host(vllm_version=(0, 23), address="10.0.0.5", kv_path_writable=False), "mount a volume"),
    ],
)
def test_a_connector_whose_means_are_missing_is_refused(connector: Connector, host: Host, sentence: str) -> None:
    with pytest.raises(RefusedError, match=sentence):
        plan(settings("decode", KV_CONNECTOR=connector.value), host, {})


def test_every_reason_is_told_at_once() -> None:
    with pytest.raises(RefusedError) as caught:
        plan(settings("decode", MODEL=""), CPU, {"VLLM_USE_V2_MODEL_RUNNER": "1"})

    assert len(str(caught.value).splitlines()) == 3


def test_without_flashinfer_its_sampler_is_switched_off() -> None:
    host = Host(vllm_version=(0, 23), address="10.0.0.5", has_flashinfer=False)

    assert plan(settings("combined"), host, {}).environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in launch("combined").environment


def test_the_role_is_required() -> None:
    with pytest.raises(ValueError, match="pd_role"):
        load(EngineSettings, {"MODEL": "m"})


def test_roles_are_spelt_as_everywhere() -> None:
    assert {role.value for role in Role} == {"prefill", "decode", "combined"}


P2P = {"KV_CONNECTOR": "P2pConnector"}
H200 = Host(vllm_version=(0, 33), address="10.0.0.5", gpus=Gpus(memory_bytes=140_000_000_000))


def test_our_connector_is_what_is_used_unless_said_otherwise() -> None:
    assert load(EngineSettings, {"PD_ROLE": "decode", "MODEL": "m"}).kv_connector is Connector.P2P


@pytest.mark.parametrize(("role", "kv_role"), [("prefill", "kv_producer"), ("decode", "kv_consumer")])
def test_our_connector_is_told_where_it_is_and_nothing_that_vllm_removed(role: str, kv_role: str) -> None:
    result = launch(role, H200, **P2P)

    config = transfer(result)
    extra = config.pop("kv_connector_extra_config")
    assert config == {
        "kv_connector": "P2pConnector",
        "kv_connector_module_path": "pd_connector.connector",
        "kv_role": kv_role,
        "kv_port": 21001 if role == "prefill" else 22001,
        "kv_load_failure_policy": "recompute",
    }
    assert connector_settings.load(extra).host == "10.0.0.5"
    assert extra["transports"] == ["vmm", "nccl", "tcp"]
    assert result.announce
    assert not {"VLLM_USE_V2_MODEL_RUNNER", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"} & result.environment.keys()


def test_our_connector_leaves_graphs_chunks_and_prefix_caching_alone() -> None:
    for role in ("prefill", "decode"):
        arguments = launch(role, H200, **P2P, PREFIX_CACHING="on").arguments

        assert "--enable-prefix-caching" in arguments
        assert not {"--enforce-eager", "--compilation-config", "--no-enable-chunked-prefill"} & set(arguments)


def test_vllm_leaves_our_connectors_pools_their_room() -> None:
    share = float(
        after(launch("decode", H200, **P2P, KV_LANDING_BYTES="7000000000").arguments, "--gpu-memory-utilization")
    )

    assert share == pytest.approx(0.85, abs=0.001)
    assert float(after(launch("decode", GPU, **P2P).arguments, "--gpu-memory-utilization")) == UNKNOWN_GPU_MEMORY
    assert (
        after(launch("decode", H200, **P2P, GPU_MEMORY_UTILIZATION="0.4").arguments, "--gpu-memory-utilization")
        == "0.4"
    )


def test_on_the_cpu_our_connector_goes_over_tcp_in_little_memory() -> None:
    result = launch("decode", CPU, **P2P, ENGINE_DEVICE="cpu")

    extra = transfer(result)["kv_connector_extra_config"]
    assert extra["transports"] == ["tcp"]
    assert extra["landing_bytes"] == extra["staging_bytes"] == CPU_POOL_BYTES
    assert "--gpu-memory-utilization" not in result.arguments


@pytest.mark.parametrize(
    ("host", "values", "sentence"),
    [
        (Host(vllm_version=(0, 22), address="10.0.0.5"), {}, "needs vLLM 0.23 or later"),
        (Host(vllm_version=(0, 33), address="10.0.0.5", has_pd_connector=False), {}, "has no pd_connector"),
        (H200, {"GPU_MEMORY_UTILIZATION": "0.95"}, "KV_LANDING_BYTES=4294967296 together are more than"),
        (H200, {"ENGINE_ARGS": "--gpu-memory-utilization 0.96"}, "lower one of them"),
    ],
)
def test_what_our_connector_cannot_work_with_is_refused(host: Host, values: dict[str, str], sentence: str) -> None:
    with pytest.raises(RefusedError, match=sentence):
        launch("decode", host, **P2P, **values)


def test_names_of_images_are_no_settings_of_vllm() -> None:
    result = plan(settings("combined"), GPU, {"VLLM_IMAGE": "vllm/vllm-openai:v0.33.0", "VLLM_LOGGING_LEVEL": "DEBUG"})

    assert result.unset == ["VLLM_IMAGE"]


def test_engines_that_meet_compare_what_no_setting_says() -> None:
    def tag(arguments: str, connector: str = "P2pConnector") -> str | None:
        found = transfer(launch("decode", KV_CONNECTOR=connector, ENGINE_ARGS=arguments))
        tagged: str | None = found.get("kv_connector_extra_config", {}).get("model_tag")
        return tagged

    assert tag("--seed 7 --enable-lora --attention-backend FLASH_ATTN") is None
    assert tag("-q fp8", "NixlConnector") is None, "which has no place for it"
    assert tag("--chat-template t --quantization=fp8") == tag("-q fp8 --chat_template=t")
    assert tag("-q fp8") != tag("-q awq")
    assert (
        tag("--hf-overrides.rope_theta=5")
        == tag("--hf-overrides '{\"rope_theta\": 5}'")
        == 'hf_overrides={"rope_theta": 5}'
    )
    assert tag('--hf-overrides \'{"b":1,"a":2}\'') == tag('--hf-overrides \'{"a": 2, "b": 1}\'')
