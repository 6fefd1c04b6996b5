"""Files and options that no plan can be made of: one sentence, in the user's language, and no traceback."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.planning import written_plan

from pd_planner.main import main

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LENGTHS = ["--input-tokens", "512", "--output-tokens", "64", "--gpus", "1", "--draws", "1"]
LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
# Program words that stay what they are.
NAMES = re.compile(r"`[^`]*`|\(?(BurstGPT|Azure|Mooncake|Qwen)\)?|Request tokens|Response tokens|/\S+|pd-plan \w+")
ENGLISH = re.compile(r"[A-Za-z]{2,} [a-z]{2,}")


def rows(count: int = 4, **changes: Any) -> str:
    """A trace in Mooncake's form, of which some keys are otherwise."""
    usual = {"input_length": 100, "output_length": 5}
    return "".join(json.dumps({"timestamp": 1000 * second, **usual, **changes}) + "\n" for second in range(count))


TRACES: dict[str, tuple[bytes | str, str, str]] = {
    "a cell without end": (AZURE + "x" * 200_000 + ",1,2\n", "trace:2: a cell is too long", "单元格太长"),
    "compressed": (gzip.compress(AZURE.encode()), "the file is compressed (gzip): unpack it first", "请先解压"),
    "without a time": (AZURE + "nan,100,5\n", "'nan' is not a date and time", "不是日期和时间"),
    "time is nothing": (
        rows(timestamp=None),
        "trace:1: timestamp: expected a number, got null",
        "timestamp：应为数，实为 null",
    ),
    "lengths below zero": (AZURE + "2024-05-10 00:00:00,-1,5\n", "'-1' is not a number of tokens", "不是 token 数"),
    "no prompt": (AZURE + "2024-05-10 00:00:00,0,5\n", "do not make a request", "构不成请求"),
    "short row": (AZURE + "2024-05-10 00:00:00\n", "1 columns, where the first line names 3", "第一行有 3 个列名"),
    "cut": (rows() + '{"timestamp": 5', "is not JSON from column 16 on", "从第 16 列起不是 JSON"),
    "empty": ("", "the file is empty", "文件是空的"),
    "only a head": (AZURE, "the trace has no request", "trace 中没有请求"),
    "other columns": ("time,in,out\n1,2,3\n", "neither JSON lines", "表格"),
    "before the beginning": (rows(timestamp=-5), "trace:1: the time -5 is below 0", "时刻 -5 小于 0"),
    "too few requests": (rows(count=19), "19 requests: too few to plan by, 20 are needed", "至少需要 20 个"),
    "at one moment": (rows(timestamp=1, count=20), "20 requests at one moment", "同一时刻"),
    "too few hashes": (rows(input_length=600, hash_ids=[1]), "1 hash_ids are too few", "太少"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_broken_trace_gets_a_sentence_in_both_languages(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, english, chinese = TRACES[name]
    trace = tmp_path / "trace"
    trace.write_bytes(content if isinstance(content, bytes) else content.encode())

    assert main(["--trace", str(trace)]) == 2
    assert english in capsys.readouterr().err
    assert main(["--trace", str(trace), "--lang", "zh"]) == 2

    told = capsys.readouterr().err
    assert chinese in told
    assert [line for line in NAMES.sub("", told).splitlines() if ENGLISH.search(line)] == []


@pytest.mark.parametrize(
    ("words", "english", "chinese"),
    [
        ([*LENGTHS, "--range-ratio", "7"], "write a number of at least 0 and below 1", "请写不小于 0、小于 1 的数"),
        ([*LENGTHS, "--arrival", "magic"], "write one of poisson, gamma", "poisson, gamma"),
        ([*LENGTHS, "--burstiness", "2"], "burstiness 2 needs arrival gamma", "burstiness 2 需要到达方式 gamma"),
        ([*LENGTHS, "--", "--prefixes", "3"], "prefixes need --prefix-tokens", "prefixes 需要 --prefix-tokens"),
        (["--trace", "/nowhere/trace.csv"], "there is no such file or folder", "没有这个文件或文件夹"),
        ([*LENGTHS, "--rate", "1e9"], "--rate: at most 1,000,000", "最多 1,000,000"),
        ([*LENGTHS, "--rate", "1e-9"], "--rate: at least 0.001, got 1e-09", "至少 0.001"),
        ([*LENGTHS[:4], "--gpu", "8"], "how many there may be is --gpus 8", "--gpus 8"),
        ([*LENGTHS[:4], "--gpus", "2", "--goodput", "ttft:1"], "--goodput sets other limits", "--goodput 可以另设"),
        ([*LENGTHS[:4], "--gpus", "9" * 20], "--gpus: at most 1,000,000", "最多 1,000,000"),
        ([*LENGTHS[:4], "--draws", "1000000"], "--draws: at most 1,000", "最多 1,000"),
        ([*LENGTHS, "--", "--rate", "5"], "write it before --", "请写在 -- 之前"),
        (
            [*LENGTHS, "--tensor-parallel", "2", "--model", "llama-3.1-8b", "--gpu", "H200"],
            "1 GPU makes no engine of 2",
            "1 块 GPU",
        ),
    ],
)
def test_what_no_plan_can_be_made_of_gets_a_sentence_in_both_languages(
    words: list[str], english: str, chinese: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert english in capsys.readouterr().err
    own = words.index("--") if "--" in words else len(words)
    assert main([*words[:own], "--lang", "zh", *words[own:]]) == 2

    told = capsys.readouterr().err
    assert chinese in told
    assert [line for line in NAMES.sub("", told).splitlines() if ENGLISH.search(line)] == []


def test_a_trace_that_is_too_fast_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(rows(count=20))

    assert main(["--trace", str(trace), "--speed", "1e300"]) == 2
    assert "choose a lower --speed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads: expected a whole number of at least 1"),
        ({"num_hidden_layers": -3}, "num_hidden_layers: expected a whole number of at least 1"),
        ({"is_encoder_decoder": True}, "it has an encoder and a decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "it writes no text"),
        ({"hybrid_override_pattern": "M-M*"}, "it has layers without attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "it has layers without attention"),
        ({"quantization_config": {"quant_method": "magic"}}, "its quantisation is unknown (magic)"),
    ],
)
def test_a_model_that_no_profile_can_be_computed_of_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))

    assert main([*LENGTHS, "--model", str(tmp_path), "--gpu", "H200"]) == 2
    assert sentence in capsys.readouterr().err
    assert main([*LENGTHS, "--model", str(tmp_path), "--gpu", "H200", "--lang", "zh"]) == 2
    assert ENGLISH.search(NAMES.sub("", capsys.readouterr().err)) is None


PLANS: dict[str, tuple[Any, str]] = {
    "no list of choices": ({"choices": {}}, "choices：应为列表，实为对象"),
    "another connector": ({"choices": [{"deployment": {"connector": "magic"}}]}, "'magic' 不是它可取的值"),
    "a text for a number": ({"rate": "many"}, "rate：应为数，实为文本"),
    "nothing": ({"schema_version": None}, "不是 pd-plan 写出的规划"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_was_edited_gets_a_sentence_in_chinese(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, sentence = PLANS[name]
    plan = written_plan(tmp_path, 1, 1)
    plan.write_text(json.dumps(json.loads(plan.read_text()) | changes))

    assert main(["check", str(plan), str(tmp_path), "--lang", "zh"]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert ENGLISH.search(NAMES.sub("", told)) is None


def test_a_folder_without_a_config_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LENGTHS, "--model", str(tmp_path), "--gpu", "H200"]) == 2
    assert "this folder has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_profile_with_a_number_that_is_none_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "own.toml"
    profile.write_text(f'base = "h200-llama3-8b"\n[decode]\nbase_ms = {number}\n')

    assert main([*LENGTHS, "--profile", str(profile)]) == 2
    assert "decode.base_ms is no finite number" in capsys.readouterr().err


def test_a_check_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(written_plan(tmp_path, 1, 1)), str(tmp_path / "runs")]) == 2
    assert "there is no usable run in" in capsys.readouterr().err
