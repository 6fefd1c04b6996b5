"""Writes the tables of typical values in concepts.md, in both languages, from the records in results; `--check` only compares."""

import re
import sys
import tarfile
import tempfile
from collections.abc import Collection, Mapping, Sequence
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

# Three deployments of the same two GPUs: their archives, and their names in a row.
DEPLOYMENTS: Final = {
    "2c": {"en": "2 plain", "zh": "2 个普通引擎"},
    "1p1d-p2p": {"en": "1P1D", "zh": "1P1D"},
    "2c-adaptive": {"en": "2 adaptive", "zh": "2 个自适应引擎"},
}
DEPLOYMENTS_SENTENCE: Final = {
    "en": "Plain vLLM 0.33.0 on two H200 against 1P1D with P2pConnector, and against [adaptive roles](routing.md), on the same two; 60 s per row ([source](results/h200x2/README.md)):",
    "zh": "两块 H200 上的普通 vLLM 0.33.0，与同样两块 GPU 上使用 P2pConnector 的 1P1D 以及[自适应角色](routing.md)对比，每行测 60 秒（[出处](results/h200x2/README.md)）：",
}
DEPLOYMENT_HEAD: Final = {"en": "deployment", "zh": "部署"}


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


def load_of(result: Result) -> tuple[int, int, float]:
    """Tokens in and out, and requests per second of all GPUs."""
    workload = result.run.manifest.workload
    return workload.input_tokens or 0, workload.output_tokens or 0, workload.rate or 0.0


def rows(source: Source) -> list[str]:
    """Rows of the loads, by size and rate."""
    served = [each for each in results(source.archive) if not each.run.manifest.workload.batch_sizes]
    return [
        row(result)
        for result in sorted(served, key=load_of)
        if load_of(result)[2] in source.loads.get(load_of(result)[:2], ())
    ]


def deployments() -> list[tuple[str, str]]:
    """The archive and the row of every load that was offered to the three deployments, by size and rate."""
    folder = DOCS / "results/h200x2/records"
    found = [(name, result) for name in DEPLOYMENTS for result in results(folder / f"{name}.tar.xz")]
    return [(name, row(result)) for name, result in sorted(found, key=lambda one: load_of(one[1]))]


def deployments_table(language: str, found: Sequence[tuple[str, str]]) -> str:
    head = HEADS[language].replace(" | TTFT", f" | {DEPLOYMENT_HEAD[language]} | TTFT", 1)
    lines = []
    for name, text in found:
        sizes, rate, *rest = text.split(" | ")
        lines.append(" | ".join([sizes, rate, DEPLOYMENTS[name][language], *rest]))
    return "\n".join(
        [DEPLOYMENTS_SENTENCE[language], "", head, "| --- | ---: | --- | ---: | ---: | ---: | ---: |", *lines]
    )


def page(old: str, language: str, tables: list[list[str]], compared: Sequence[tuple[str, str]]) -> str:
    """The page with its tables as they should be."""
    parts = [
        "\n".join(
            [source.sentence[language], "", HEADS[language], "| --- | ---: | ---: | ---: | ---: | ---: |", *table]
        )
        for source, table in zip(SOURCES, tables, strict=True)
    ]
    text = "\n\n".join([*parts, deployments_table(language, compared)])
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", old, flags=re.DOTALL)


def main() -> int:
    tables, compared = [rows(source) for source in SOURCES], deployments()
    check = sys.argv[1:] == ["--check"]
    same = True
    for language, name in (("en", "concepts.md"), ("zh", "concepts.zh.md")):
        path = DOCS / name
        old = path.read_text(encoding="utf-8")
        new = page(old, language, tables, compared)
        same = same and old == new
        if not check:
            path.write_text(new, encoding="utf-8")
    return 0 if same or not check else 1


if __name__ == "__main__":
    sys.exit(main())
