"""Writes the tables of typical values in concepts.md, in both languages, from the records in results; `--check` only compares."""

import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pd_analysis.numbers.evaluation import Result, evaluate
from pd_analysis.numbers.measures import COMPARED
from pd_analysis.records.reader import load_runs
from pd_analysis.words.formatting import number

DOCS: Final = Path(__file__).parent
BEGIN: Final = "<!-- typical: written by docs/write_typical.py -->"
END: Final = "<!-- end of typical -->"
HEADS: Final = {
    "en": "| tokens in → out | requests/s per GPU | TTFT p50 / p99, ms | TPOT p50 / p99, ms | longest gap p99, ms | J/output token |",
    "zh": "| 输入 → 输出 token | 每 GPU 每秒请求数 | TTFT p50 / p99，ms | TPOT p50 / p99，ms | 最长间隔 p99，ms | J/输出 token |",
}


PAIR: Final = DOCS / "results/h200-p2p/data/load.json"
PAIR_SENTENCE: Final = {
    "en": "Plain vLLM 0.33.0 on two H200 against 1P1D with P2pConnector on the same two, where prefill sends the first token; "
    "512 → 64 tokens, 16 s per row ([source](results/h200-p2p/README.md)):",
    "zh": "两块 H200 上的普通 vLLM 0.33.0，与同样两块 GPU 上使用 P2pConnector 的 1P1D（首 token 由 prefill 发出）对比；512 → 64 token，每行测 16 秒"
    "（[出处](results/h200-p2p/README.md)）：",
}
PAIR_HEADS: Final = {
    "en": "| requests/s per GPU | deployment | TTFT p50 / p99, ms | TPOT p50 / p99, ms | longest gap p50 / p99, ms |",
    "zh": "| 每 GPU 每秒请求数 | 部署 | TTFT p50 / p99，ms | TPOT p50 / p99，ms | 最长间隔 p50 / p99，ms |",
}
PAIR_NAMES: Final = {"plain": {"en": "2 plain", "zh": "2 个普通引擎"}, "announced": {"en": "1P1D", "zh": "1P1D"}}


@dataclass(frozen=True)
class Source:
    """Records, the loads of them that are shown (tokens in and out: requests per second of all GPUs), and what they are of."""

    archive: Path
    loads: Mapping[tuple[int, int], Collection[float]]
    sentence: Mapping[str, str]


SOURCES: Final = (
    Source(
        DOCS / "results/h200/records/combined4.tar.xz",
        {(512, 64): (8, 64, 128), (2048, 128): (4, 20, 44)},
        {
            "en": "Plain vLLM 0.23.0 with Llama-3.1-8B's shape on four H200, one engine per GPU ([source](results/h200/README.md)):",
            "zh": "四块 H200 上的普通 vLLM 0.23.0，模型结构为 Llama-3.1-8B，每块 GPU 一个引擎（[出处](results/h200/README.md)）：",
        },
    ),
    Source(
        DOCS / "results/h200x1/records/1c.tar.xz",
        {(512, 64): (2, 15, 30, 40)},
        {
            "en": "The same with vLLM 0.33.0 on one H200, 60 s per row ([source](results/h200x1/README.md)):",
            "zh": "一块 H200 上的 vLLM 0.33.0，其余相同，每行测 60 秒（[出处](results/h200x1/README.md)）：",
        },
    ),
)


def results(path: Path) -> list[Result]:
    """What the report makes of an archive of records."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
        return evaluate(load_runs([folder]))


def row(result: Result) -> str:
    load = result.run.manifest.workload
    got = {measure.key: measure for measure in COMPARED}

    def value(key: str) -> str:
        found = got[key].get(result)
        return "–" if found is None else number(found * got[key].scale)

    latencies = " | ".join(f"{value(f'{name} p50')} / {value(f'{name} p99')}" for name in ("TTFT", "TPOT"))
    rate = (load.rate or 0) / (result.metrics.gpus or 1)
    sizes = f"{load.input_tokens:,} → {load.output_tokens}"
    return f"| {sizes} | {rate:g} | {latencies} | {value('Longest gap p99')} | {value('Energy per output token')} |"


def rows(source: Source) -> list[str]:
    """Rows of the loads, by size and rate."""

    def load_of(result: Result) -> tuple[int, int, float]:
        workload = result.run.manifest.workload
        return workload.input_tokens or 0, workload.output_tokens or 0, workload.rate or 0.0

    served = [each for each in results(source.archive) if not each.run.manifest.workload.batch_sizes]
    return [
        row(result)
        for result in sorted(served, key=load_of)
        if load_of(result)[2] in source.loads.get(load_of(result)[:2], ())
    ]


def pair_table(language: str) -> str:
    """Plain engines and a pair under the same arrivals, as `benchmarks/connector` measured them: p50, p90 and p99 of each."""
    found = [row for row in json.loads(PAIR.read_text(encoding="utf-8")) if row["order"] in PAIR_NAMES]
    rows = [
        " | ".join(
            [
                f"| {row['rate a GPU']:g} | {PAIR_NAMES[row['order']][language]}",
                *(
                    f"{number(row[what][0])} / {number(row[what][2])}"
                    for what in ("TTFT ms", "TPOT ms", "longest gap ms")
                ),
            ]
        )
        + " |"
        for row in found
    ]
    return "\n".join([PAIR_SENTENCE[language], "", PAIR_HEADS[language], "| ---: | --- | ---: | ---: | ---: |", *rows])


def page(old: str, language: str, tables: list[list[str]]) -> str:
    """The page with its tables as they should be."""
    parts = [
        "\n".join(
            [source.sentence[language], "", HEADS[language], "| --- | ---: | ---: | ---: | ---: | ---: |", *table]
        )
        for source, table in zip(SOURCES, tables, strict=True)
    ]
    text = "\n\n".join([*parts, pair_table(language)])
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", old, flags=re.DOTALL)


def main() -> int:
    tables = [rows(source) for source in SOURCES]
    check = sys.argv[1:] == ["--check"]
    same = True
    for language, name in (("en", "concepts.md"), ("zh", "concepts.zh.md")):
        path = DOCS / name
        old = path.read_text(encoding="utf-8")
        new = page(old, language, tables)
        same = same and old == new
        if not check:
            path.write_text(new, encoding="utf-8")
    return 0 if same or not check else 1


if __name__ == "__main__":
    sys.exit(main())
