"""The page of the simulated results: with several seeds it has their mean and their worst, in both languages."""

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CHANGING, STEPS = "answers grow, 150/20", (1.1, 1.3, 2.0)
TUNED, NEW = "code, 1000/15", "Mooncake's conversation, 3000/20"


@pytest.fixture(name="pages")
def _pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], tuple[list[str], list[str]]]:
    """The lines of both pages, with what adaptive routing has of the best in each seed."""
    for folder in ("benchmarks/routing", "docs"):
        monkeypatch.syspath_prepend(ROOT / folder)
    table, chinese = importlib.import_module("table"), importlib.import_module("write_routing_zh")

    def write(shares: dict[int, float]) -> tuple[list[str], list[str]]:
        rows = [row for seed, share in shares.items() for row in rows_of(seed, share)]
        english = table.page(rows, argparse.Namespace(engines=4, seconds=90.0, requests=1000))
        return english.splitlines(), chinese.translated(english).splitlines()

    return write


def rows_of(seed: int, share: float) -> Iterator[dict[str, Any]]:
    for tuned, case in ((True, TUNED), (False, NEW)):
        key = {"case": case, "engines": 4, "seed": seed, "tuned": tuned}
        rejected = {"rejected_below": 0.1 * (1 - share), "kept_1.3": share}
        yield {
            **key,
            "kind": "capacity",
            "plain": 1,
            "static": 2,
            "prefills": 2,
            "adaptive": 2 * share,
            "handed_over": 1,
        }
        yield {**key, "kind": "reject", **rejected}
        stressed = {"without_1.3": 0.0, "bursts": share, "bursts_best": 1, "wrong_0.85": 2 * share, "wrong_1.2": share}
        yield {**key, "kind": "stress", **rejected, **stressed}
        steps = {f"{name}_{factor}": [0.0, 1 - share] for name in ("before", "after", "again") for factor in STEPS}
        yield {**key, "kind": "steps", **steps, **{f"kept_{factor}": [share, factor] for factor in STEPS}}
    yield {
        "case": CHANGING,
        "engines": 4,
        "seed": seed,
        "tuned": False,
        "kind": "changing",
        "plain": 1,
        "static": 2,
        "prefills": 2,
        "adaptive": 2 * share,
        "handed_over": 1,
    }


def cells(lines: list[str], traffic: str) -> list[str]:
    """A traffic's rows in all tables."""
    return [line.removeprefix(f"| {traffic} | ") for line in lines if line.startswith(f"| {traffic} | ")]


def test_one_seed_has_one_number(pages: Callable[[dict[int, float]], tuple[list[str], list[str]]]) -> None:
    english, chinese = pages({1: 0.8})

    assert cells(english, TUNED) == [
        "1.00 | 2.00 (2P) | 1.60 | 100% | 0.80 |",
        "2.0% | 0.80 |",
        "0.80 | 0.00 | 2.0% | 0.80 | 1.00 | 0.50 |",
        "0.95 (0.80) | 1.05 (0.80) | 1.40 (0.80) | 20.0% | 20.0% | 0.2 |",
    ]
    assert cells(chinese, "代码，1000/15") == cells(english, TUNED)
    assert not any("worst seed" in line for line in english)
    assert cells(english, CHANGING) == cells(chinese, "回答变长，150/20") == ["1.00 | 2.00 (2P) | 1.60 | 100% | 0.80 |"]
    assert f"- 1 rows: geometric mean 0.800, worst 0.80 ({CHANGING}), best 0.80." in english
    assert "- 1 行：几何平均 0.800，最差 0.80（回答变长，150/20），最好 0.80。" in chinese
    assert f"- At 2 ×: geometric mean 1.400, worst 1.40 ({TUNED}), worst load 0.80 ({TUNED})." in english


def test_several_seeds_have_their_mean_and_the_worst(
    pages: Callable[[dict[int, float]], tuple[list[str], list[str]]],
) -> None:
    english, chinese = pages({1: 1.0, 2: 0.8})

    assert cells(english, TUNED) == [
        "1.00 | 2.00 (2P) | 1.80 | 100% | 0.90 (0.80) |",
        "1.0% (2.0%) | 0.90 (0.80) |",
        "0.90 (0.80) | 0.00 (0.00) | 1.0% (2.0%) | 0.90 (0.80) | 1.00 (1.00) | 0.50 (0.50) |",
        "1.00 (0.80) | 1.10 (0.80) | 1.45 (0.80) | 20.0% | 20.0% | 0.2 |",
    ]
    assert cells(chinese, "代码，1000/15") == cells(english, TUNED)
    assert f"- Bursts: geometric mean 0.900, worst 0.90 ({TUNED}), worst seed 0.80 ({TUNED})." in english
    assert "- 突发：几何平均 0.900，最差 0.90（代码，1000/15），最差的种子 0.80（代码，1000/15）。" in chinese
    assert f"- 1 new rows: geometric mean 0.900, worst 0.90 ({NEW}), worst seed 0.80 ({NEW}), best 0.90." in english
