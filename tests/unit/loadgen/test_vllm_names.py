"""Commands of `vllm bench serve` offer the same load here, or get a message with the equivalent."""

import argparse
import math
import shlex

import pytest

from pd_contracts.settings import fields
from pd_loadgen.workload import options
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.schedule import Arrival
from pd_loadgen.workload.vllm_names import ANSWERS, RENAMED, ForeignOptionError, our_name, translated


def load(command: str) -> Options:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.load(options.given(parser.parse_args(translated(shlex.split(command)))), {})


def chosen(read: Options) -> dict[str, object]:
    """What differs from the defaults."""
    values = {field.name: (getattr(read, field.name), field.default) for field in fields(Options)}
    return {name: value for name, (value, default) in values.items() if value != default}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--request-rate 4", {"rate": 4.0}),
        ("--request-rate=4 --duration 60", {"rate": 4.0, "duration": 60.0}),
        ("--num-prompts 200 --request-rate 4", {"requests": 200, "rate": 4.0, "duration": math.inf}),
        ("--num-prompts 200", {"requests": 200, "rate": math.inf, "duration": math.inf}),
        (
            "--num-prompts 200 --max-concurrency 8",
            {"requests": 200, "max_concurrency": 8, "rate": math.inf, "duration": math.inf},
        ),
        (
            "--dataset-name random --random-input-len 100 --random-output-len 20 --random-range-ratio 0.5 --random_prefix_len 7",
            {"input_tokens": 100, "output_tokens": 20, "range_ratio": 0.5, "prefix_tokens": 7},
        ),
        ("--dataset-name sharegpt --dataset-path s.json", {"dataset": "sharegpt", "dataset_path": "s.json"}),
        ("--dataset-name custom --dataset-path s.jsonl", {"dataset": "jsonl", "dataset_path": "s.jsonl"}),
        ("--dataset-name hf --hf-name a/b --hf-split test", {"dataset": "huggingface", "dataset_path": "a/b", "dataset_split": "test"}),
        ("--backend vllm --base-url http://h:1/v1", {"url": "http://h:1"}),
        ("--backend openai-chat --endpoint /v1/chat/completions --dataset text", {"endpoint": "chat", "path": "/v1/chat/completions", "dataset": "text"}),
        ("--endpoint-type openai-chat --dataset text", {"endpoint": "chat", "dataset": "text"}),
        ("--endpoint chat --dataset text", {"endpoint": "chat", "dataset": "text"}),
        ("--host example.org --port 81", {"url": "http://example.org:81"}),
        ("--port 81", {"url": "http://127.0.0.1:81"}),
        ("--port 81 --url http://h", {"url": "http://h"}),
        ("--burstiness 0.5", {"arrival": "gamma", "burstiness": 0.5}),
        ("--burstiness 1.0", {}),
        ("--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 9", {"arrival": "ramp", "start_rate": 1.0, "rate": 9.0}),
        ("--num-warmups 3 --ready-check-timeout-sec 0 --metric_percentiles 95,99.9", {"warmup": 3, "ready_timeout": 0.0, "percentiles": (95.0, 99.9)}),
        ("--save-result --disable-tqdm --trust-remote-code --percentile-metrics ttft,tpot --result-filename x.json", {}),
        ("--goodput ttft:200 tpot:50 --ignore-eos --seed 3 --save-detailed", {"goodput": "ttft:200 tpot:50", "seed": 3, "save_detailed": True}),
        ("--arrival replay --trace t.jsonl --num-prompts 5", {"arrival": "replay", "trace": "t.jsonl", "requests": 5, "duration": math.inf}),
    ],
)  # fmt: skip
def test_vllms_options_are_taken_as_ours(command: str, expected: dict[str, object]) -> None:
    assert chosen(load(command)) == expected


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("--dataset-name sonnet", "sonnet has no counterpart.*random, sharegpt, custom, hf.*--dataset"),
        ("--backend openai-audio", "no counterpart"),
        ("--ramp-up-strategy exponential", "no counterpart.*linear"),
        ("--request-rate", "--request-rate needs a value"),
        *((f"--{name} x", f"--{name} is an option of vllm bench serve: ") for name in ANSWERS),
    ],
)
def test_what_has_no_counterpart_is_answered(command: str, sentence: str) -> None:
    with pytest.raises(ForeignOptionError, match=sentence):
        load(command)


def test_answers_name_options_that_exist() -> None:
    known = {field.option for field in fields(Options)} | {"--label"}
    named = {word.strip(":,;.'\"") for answer in ANSWERS.values() for word in answer.split() if word.startswith("--")}

    assert named <= known
    assert {f"--{name}" for name in RENAMED.values()} <= known


def test_files_may_use_their_names_too() -> None:
    assert [our_name(name) for name in ("request_rate", "num-prompts", "input_tokens")] == [
        "rate",
        "requests",
        "input_tokens",
    ]


def test_our_own_commands_are_left_alone() -> None:
    words = ["--rate", "4", "--no-ignore-eos", "--out", "--request", "--goodput", "ttft:1", "tpot:2"]

    assert translated(words) == words


def test_an_infinite_burstiness_is_constant() -> None:
    read = load("--num-prompts 4 --request-rate 2 --burstiness inf")

    assert (read.arrival, read.burstiness) == (Arrival.GAMMA, math.inf)
