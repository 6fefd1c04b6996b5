"""Options from the command line, from the environment, and what is refused."""

import argparse

import pytest

from pd_contracts.settings import SettingsError, choices, fields, shown
from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.workload import options
from pd_loadgen.workload.conflicts import RULES, said
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.schedule import Arrival


def parse(*words: str, **environment: str) -> Options:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.load(options.given(parser.parse_args(words)), environment)


def test_everything_has_a_default() -> None:
    assert parse() == Options()


def test_the_command_line_of_the_demo_is_understood() -> None:
    read = parse(
        *("--url", "http://h:1", "--model", "m", "--dataset", "text", "--input-tokens", "64", "--output-tokens", "16"),
        *(
            "--rate",
            "2.5",
            "--duration",
            "20",
            "--seed",
            "7",
            "--warmup",
            "3",
            "--goodput",
            "ttft:200 tpot:50",
            "--out",
            "d",
        ),
        *("--label", "l", "--title", "a title", "--gpus", "2", "--monitor", "http://m:2", "--endpoint", "chat"),
        "--no-ignore-eos",
    )

    assert (read.url, read.model, read.dataset, read.input_tokens, read.output_tokens) == (
        "http://h:1",
        "m",
        Dataset.TEXT,
        64,
        16,
    )
    assert (read.rate, read.duration, read.seed, read.warmup, read.goodput) == (2.5, 20, 7, 3, "ttft:200 tpot:50")
    assert (read.label, read.title, read.gpus, read.monitor, read.endpoint) == (
        "l",
        "a title",
        2,
        "http://m:2",
        Endpoint.CHAT,
    )
    assert (read.out, read.ignore_eos, parse("--ignore-eos").ignore_eos) == ("d", False, True)


def test_goodput_may_be_several_words() -> None:
    assert parse("--goodput", "ttft:200", "tpot:50").goodput == "ttft:200 tpot:50"


def test_variables_fill_what_the_command_line_leaves_open() -> None:
    read = parse("--rate", "5", LOADGEN_RATE="3", LOADGEN_SEED="9", MODEL="m", LOADGEN_IGNORE_EOS="off")

    assert (read.rate, read.seed, read.model, read.ignore_eos) == (5, 9, "m", False)


def test_a_bad_value_is_called_by_the_name_under_which_it_was_written() -> None:
    with pytest.raises(SettingsError, match=r"^LOADGEN_RATE='fast' cannot be used"):
        parse(LOADGEN_RATE="fast")
    with pytest.raises(SettingsError, match=r"^--rate='fast' cannot be used"):
        parse("--rate", "fast", LOADGEN_RATE="slow")


def test_variables_of_other_services_are_not_ours() -> None:
    assert parse(RATE="99", SEED="99", URL="x", OUT="x") == Options()


def test_the_proxys_port_is_the_default_target() -> None:
    assert parse(HTTP_PROXY_PORT="123").url == "http://127.0.0.1:123"
    assert parse(HTTP_PROXY_PORT="123", LOADGEN_URL="http://h:1").url == "http://h:1"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rate", "0"], "--rate='0'"),
        (["--rate", "fast"], "--rate='fast'"),
        (["--duration", "-1"], "--duration='-1'"),
        (["--input-tokens", "0"], "--input-tokens='0'"),
        (["--output-tokens", "1.5"], "--output-tokens='1.5'"),
        (["--vocab-size", "10"], "--vocab-size='10'"),
        (["--dataset", "sonnet"], "random, text, jsonl, sharegpt"),
        (["--goodput", "ttft"], "number of milliseconds"),
        (["--goodput", "latency:5"], "write ttft, tpot or e2el"),
        (["--url", "localhost:8000"], "http://host:port"),
        (["--monitor", "localhost"], "http://host:port"),
        (["--endpoint", "chat"], "use dataset text or endpoint completions"),
        (["--burstiness", "0.5"], "needs arrival gamma"),
        (["--dataset", "jsonl"], "--dataset-path"),
        (["--dataset-path", "x"], "reads no file"),
        (["--dataset", "sharegpt", "--dataset-path", "x", "--turns", "2"], "generated prompts"),
        (["--turns", "2", "--prefix-tokens", "8"], "leave out range-ratio"),
        (["--vocab-size", "3000000"], "up to 2000000"),
        (["--range-ratio", "1"], "--range-ratio='1'"),
        (["--prefixes", "2"], "--prefix-tokens"),
        (["--start-rate", "1"], "ramp or step"),
        (["--arrival", "step", "--steps", "1"], "--steps='1'"),
        (["--arrival", "replay"], "arrival replay needs a --trace"),
        (["--trace", "x", "--arrival", "poisson"], "--trace needs --arrival replay, not poisson"),
        (["--trace", "x", "--rate", "5"], "a trace has its own rate"),
        (["--time-scale", "2"], "needs a trace"),
        (["--arrival", "replay", "--trace", "x", "--range-ratio", "0.5"], "a trace has the lengths"),
        (["--arrival", "closed"], "--max-concurrency and --requests"),
        (["--arrival", "closed", "--requests", "4"], "--max-concurrency and --requests"),
        (["--mode", "phase-split"], "--requests"),
        (["--mode", "phase-split", "--requests", "2", "--output-tokens", "1"], "2 output tokens"),
        (["--mode", "batch", "--max-concurrency", "2"], "has its own order"),
        (["--batch-sizes", "1,0"], "--batch-sizes='1,0'"),
        (["--percentiles", "101"], "--percentiles='101'"),
        (["--path", "generate"], "begin with /"),
        (["--endpoint", "tgi"], "use dataset text"),
        (["--headers", "X: y"], "JSON object"),
        (["--headers", '{"Authorization": "Bearer x"}'], "--api-key-file"),
        (["--headers", '{"Content-Length": "1"}'], "set by the client"),
        (["--headers", '{"X-A": "a\\r\\nX-B: b"}'], "cannot carry"),
        (["--extra-body", "[1]"], "JSON object"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(*words)

    assert sentence in str(caught.value)


def test_a_trace_without_an_arrival_is_replayed() -> None:
    assert parse("--trace", "x").arrival is Arrival.REPLAY
    assert parse(LOADGEN_TRACE="x").arrival is Arrival.REPLAY
    with pytest.raises(SettingsError):
        parse("--trace", "x", LOADGEN_ARRIVAL="gamma")


def test_a_form_can_hold_every_option_as_text() -> None:
    chosen = Options(
        rate=1.5, ignore_eos=False, dataset=Dataset.TEXT, seed=-3, percentiles=(50.0, 99.9), batch_sizes=(3,)
    )
    texts = {field.name: shown(getattr(chosen, field.name)) for field in fields(Options)}

    assert options.load(texts, {}) == chosen


def test_a_form_can_list_what_is_accepted() -> None:
    accepted = {field.name: choices(field) for field in fields(Options)}

    assert accepted["dataset"] == ["random", "text", "jsonl", "sharegpt", "huggingface"]
    assert accepted["arrival"] == ["poisson", "gamma", "constant", "ramp", "step", "closed", "replay"]
    assert accepted["ignore_eos"] == ["on", "off"]
    assert accepted["rate"] is None


def test_every_option_is_described() -> None:
    assert all(field.description for field in fields(Options))


def test_the_help_shows_the_options_by_subject_and_each_once() -> None:
    parser = argparse.ArgumentParser(prog="run")
    options.add_arguments(parser)
    text = parser.format_help()

    titles = ["Load:", "Prompts:", "Pace:", "Sampling:", "Server:", "Results:"]
    assert [line for line in text.splitlines() if line in titles] == titles
    assert all(text.count(f"\n  {field.option} ") == 1 or f"{field.option}, " in text for field in fields(Options))
    assert "--profile-urls TEXT,…" in text
    assert "--rate NUMBER" in text


def test_every_rule_can_be_broken_and_says_what_to_do() -> None:
    for _, message in RULES:
        assert "{" not in str(said(message, Options()))
