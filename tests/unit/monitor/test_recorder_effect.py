"""The benchmark of what recording costs the engines: its arithmetic."""

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "monitor" / "recorder_effect.py"


@pytest.fixture(name="effect", scope="module")
def _effect() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recorder_effect", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def test_a_pairs_difference_is_relative_to_the_half_without_a_recording(effect: ModuleType) -> None:
    assert effect.differences([10.1, 20.0], [10.0, 20.2]) == pytest.approx([1.0, -100 / 101])


def test_the_interval_of_a_known_effect_holds_it_and_narrows_with_the_pairs(effect: ModuleType) -> None:
    noise = random.Random(7)
    values = [0.3 + noise.gauss(0, 0.2) for _ in range(200)]
    few, many = effect.bootstrap(values[:20], 0, 2000), effect.bootstrap(values, 0, 2000)

    assert many.low < 0.3 < many.high
    assert few.low < 0.3 < few.high
    # 20 and 200 values of a deviation of 0.2: ± 1.96 × 0.2 / √n
    assert few.high - few.low == pytest.approx(0.175, rel=0.4)
    assert many.high - many.low == pytest.approx(0.055, rel=0.4)
    assert effect.bootstrap(values, 0, 2000) == many


def test_the_verdict_needs_the_whole_interval(effect: ModuleType) -> None:
    def said(low: float, high: float) -> str:
        return str(effect.verdict(effect.Interval((low + high) / 2, low, high), 0.5)).split()[0]

    assert said(-0.1, 0.4) == "within"
    assert said(0.2, 0.7) == "undecided:"
    assert said(-0.7, 0.7) == "undecided:"
    assert said(0.6, 0.7) == "beyond"
    assert said(-0.9, -0.6) == "beyond"


def test_tokens_are_timed_by_reads_and_counted_by_the_server(effect: ModuleType) -> None:
    token = event(choices=[{"text": "a"}])
    usage = event(choices=[], usage={"completion_tokens": 4})
    reads = [(1.0, token[:9]), (1.5, token[9:] + token), (2.0, token), (2.5, token + usage + b"data: [DONE]\n\n")]

    assert effect.tokens_of(reads) == ([1.5, 2.0, 2.5], 4)


@pytest.mark.parametrize("broken", ["error", "no end", "no usage"])
def test_a_broken_stream_is_no_measurement(effect: ModuleType, broken: str) -> None:
    token, usage = event(choices=[{"text": "a"}]), event(choices=[], usage={"completion_tokens": 2})
    parts = {
        "error": [token, event(error={"message": "gone"}), b"data: [DONE]\n\n"],
        "no end": [token, token, usage],
        "no usage": [token, token, b"data: [DONE]\n\n"],
    }[broken]

    with pytest.raises(effect.UnmeasurableError):
        effect.tokens_of(list(enumerate(parts)))


def test_a_half_weighs_streams_by_their_tokens(effect: ModuleType) -> None:
    streams = [([0.0, 0.1, 0.2], 3), ([0.0, 0.3], 2)]

    half = effect.half_of(streams, recorded=False, seconds=1.0)

    assert half.tpot_ms == pytest.approx(500 / 3)
    assert half.tokens == 5


def test_the_same_seed_gives_the_same_prompts(effect: ModuleType) -> None:
    prompts = effect.prompts_of(3, 4, 50)

    assert effect.prompts_of(3, 4, 50) == prompts
    assert effect.prompts_of(4, 4, 50) != prompts
    assert len(set(prompts)) == 4
    assert {len(prompt.split()) for prompt in prompts} == {50}
