"""How vLLM reads arguments; tests/e2e compares this with vLLM's own parser."""

from typing import Any

import pytest

from pd_engine.commandline import CommandLineError, config_path, number, parse


def given(*arguments: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    return {name: value for name, value in parse(["m", *arguments], config).given.items() if name != "model_tag"}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--port", "9000"], {"port": "9000"}),
        (["--port=9000"], {"port": "9000"}),
        (["--port", "9000", "--port", "9001"], {"port": "9001"}),
        (["-tp", "2"], {"tensor_parallel_size": "2"}),
        (["-tp=2"], {"tensor_parallel_size": "2"}),
        (["-n2"], {"nnodes": "2"}),
        (["--tensor_parallel_size=2"], {"tensor_parallel_size": "2"}),
        (["--tensor-par", "2"], {"tensor_parallel_size": "2"}),
        (["--gpu-mem", ".95"], {"gpu_memory_utilization": ".95"}),
        (["--device-memory-utilization", "0.95"], {"gpu_memory_utilization": "0.95"}),
        (["--api-key", "one", "two", "--uds", "x"], {"api_key": ["one", "two"], "uds": "x"}),
        (["--enforce-eager"], {"enforce_eager": True}),
        (["--enforce-eager", "--no-enf"], {"enforce_eager": False}),
        (["--disable-chunked-prefill"], {"enable_chunked_prefill": False}),
        (["--no-enable-chunked-prefill"], {"enable_chunked_prefill": False}),
        (["--enable-chunked-pre"], {"enable_chunked_prefill": True}),
        (["--enable-cascade-attn"], {"disable_cascade_attn": False}),
        (["--no-disable-cascade-attn"], {"disable_cascade_attn": False}),
        (["-O3"], {"optimization_level": "3"}),
        (["-O", "2"], {"optimization_level": "2"}),
        (["-O=1"], {"optimization_level": "1"}),
        (["--seed", "-1"], {"seed": "-1"}),
        (["--option-of-a-later-vllm", "5", "--port", "1"], {"port": "1"}),
    ],
    ids=" ".join,
)
def test_each_spelling_is_read_as_vllm_reads_it(arguments: list[str], values: dict[str, Any]) -> None:
    assert given(*arguments) == values


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--kv-transfer-config.kv_role", "x"], "kv_transfer_config", {"kv_role": "x"}),
        (["--kv_transfer_config.a.b=1k", "--kv-transfer-config.a.c", "1K"], "kv_transfer_config", {"a": {"b": 1000, "c": 1024}}),
        (["-cc.cudagraph_mode=FULL"], "compilation_config", {"cudagraph_mode": "FULL"}),
        (["-cc.sizes+", "1,2", "-cc.sizes+=4"], "compilation_config", {"sizes": ["1", "2", "4"]}),
        # What is given by parts counts as if it stood at the end, and replaces the whole.
        (["--kv-tr.kv_role=x", "--kv-transfer-config", '{"kv_connector": "y"}'], "kv_transfer_config", {"kv_role": "x"}),
    ],
)  # fmt: skip
def test_json_given_by_parts_replaces_what_was_given_whole(arguments: list[str], name: str, value: Any) -> None:
    assert parse(["m", *arguments]).object(name) == value


def test_a_config_file_counts_less_than_the_command_line() -> None:
    config = {
        "port": 7,
        "api_key": ["a", "b"],
        "enforce-eager": True,
        "enable-lora": False,
        "served-model-name": [],
        "kv_transfer_config": {"a": 1},
    }

    assert given("--port", "8", config=config) == {
        "port": "8",
        "api_key": ["a", "b"],
        "enforce_eager": True,
        "kv_transfer_config": '{"a": 1}',
    }


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["--config", "a.yaml"], "a.yaml"),
        (["--config=b.yml", "x"], None),
        (["--config-format", "hf"], None),
        (["--config"], None),
    ],
)
def test_the_config_file_is_found(arguments: list[str], path: str | None) -> None:
    assert config_path(arguments) == path


def test_the_model_may_be_an_option() -> None:
    assert parse(["m", "--model=other", "--seed", "1"]).text("model_tag") == "other"


@pytest.mark.parametrize("arguments", [["--data-parallel-s", "2"], ["--port"], ["--port="]])
def test_what_vllm_would_not_understand_is_an_error(arguments: list[str]) -> None:
    if arguments == ["--port="]:
        assert given(*arguments) == {"port": ""}  # understood, and refused by its type
        return
    with pytest.raises(CommandLineError):
        given(*arguments)


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("1k", 1000), ("2K", 2048), ("0.95", 0.95), (".9", 0.9), ("25.6k", 25600), ("auto", None), ("", None)]
)  # fmt: skip
def test_numbers_have_factors(text: str, value: float | None) -> None:
    assert number(text) == value
