"""Makes the reports of docs/results anew, in both languages, from the raw records that lie beside them.

`python docs/write_results.py [NAME…]` unpacks `docs/results/NAME/records/*.tar.xz` and writes `report.md`, `report.zh.md` and the figures, in
English for both. The page for a browser is not kept, for its size: unpack the archives and run `pd-analysis report`.
"""

import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pd_analysis.records.reader import load_tree
from pd_analysis.report.writer import write_report

RESULTS: Final = Path(__file__).parent / "results"
TITLES: Final = {
    "cpu": {
        "en": "Separate prefill and decode against plain vLLM, on the CPU",
        "zh": "CPU 上的 PD 分离与普通 vLLM 对比",
    },
    "h200": {
        "en": "Plain vLLM against separate prefill and decode, on four H200",
        "zh": "四块 H200 上的普通 vLLM 与 PD 分离对比",
    },
    "h200x1": {"en": "Plain vLLM on one H200", "zh": "一块 H200 上的普通 vLLM"},
    "h200x2": {
        "en": "Plain vLLM, 1P1D and adaptive routing, on two H200",
        "zh": "两块 H200 上的普通 vLLM、1P1D 与自适应路由",
    },
}
# Repeats of one deployment only, with another seed or on another host: beside the others they would make its numbers rest on other loads.
# The mixed traffic of two H200 had other limits and other settings, on other boards; the folder's README has its numbers.
LEFT_OUT: Final = {"h200": ("*-seed-2",), "h200x2": ("*-host-1", "*-mixed")}


def unpacked(name: str, into: Path) -> Path:
    """The records of a folder of results, as a tree of run folders."""
    for archive in sorted((RESULTS / name / "records").glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
    for pattern in LEFT_OUT.get(name, ()):
        for run in list(into.rglob(pattern)):
            shutil.rmtree(run)
    return into


def write(name: str) -> None:
    """The report of one folder of results."""
    with tempfile.TemporaryDirectory() as temporary:
        loaded, target = load_tree([unpacked(name, Path(temporary) / "records")]), RESULTS / name
        chinese = write_report(loaded, Path(temporary) / "zh", TITLES[name]["zh"], "zh")
        shutil.copyfile(chinese.markdown, target / "report.zh.md")
        out = Path(temporary) / "en"
        written = write_report(loaded, out, TITLES[name]["en"])
        shutil.rmtree(target / "plots", ignore_errors=True)
        for figure in (out / "plots").rglob("*.png"):
            kept = target / figure.relative_to(out)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(figure, kept)
        shutil.copyfile(written.markdown, target / written.markdown.name)


def main(names: Iterable[str]) -> None:
    for name in names or TITLES:
        write(name)


if __name__ == "__main__":
    main(sys.argv[1:])
