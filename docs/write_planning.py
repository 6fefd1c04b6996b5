"""Writes the tables of docs/planning.md and its Chinese page from the condensed runs of `benchmarks/planner`; `--check` only says whether they are up to date."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "planner"))

from accuracy import tables  # noqa: E402 - found in the folder that was just named

PAGE: Final = ROOT / "docs" / "planning.md"
CHINESE_PAGE: Final = PAGE.with_suffix(".zh.md")
BEGIN, END = "<!-- written by docs/write_planning.py -->", "<!-- end -->"
# Phrases of the tables, and their sentences with the numbers in them.
CHINESE: Final = {
    r"\| median error, four GPUs \|": "| 误差中位数，四块 GPU |",
    r"\| its 95% interval \|": "| 它的 95% 区间 |",
    r"\| (\d+) to (\d+%) \|": r"| \1 到 \2 |",
    r"\| requests/s per GPU within the limits \| tokens \| measured \|": "| 上限以内每 GPU 的请求/秒 | token | 实测 |",
    r"\| one GPU, vLLM 0\.33 \| predicted by a fit to \| requests/s within the limits \| SIMULATED \|": "| 一块 GPU，vLLM 0.33 | 预测所用的拟合 | 上限以内的请求/秒 | 模拟 |",
    r"\| two GPUs, vLLM 0\.33 \| tokens \| predicted by a fit to \| requests/s per GPU within the limits \| SIMULATED \|": (
        "| 两块 GPU，vLLM 0.33 | token | 预测所用的拟合 | 上限以内每 GPU 的请求/秒 | 模拟 |"
    ),
    r"\| one H200, vLLM 0\.33 \|": "| 一块 H200，vLLM 0.33 |",
    r"four H200, vLLM 0\.23; launches of vLLM 0\.33 \(shipped\)": "四块 H200，vLLM 0.23；启动时间取自 vLLM 0.33（自带）",
    r"four H200, vLLM 0\.23 \|": "四块 H200，vLLM 0.23 |",
    r"the other lengths on one H200": "一块 H200 上的其他长度",
    r"\| (\d+) combined \|": r"| \1 个 combined |",
    r"Capacity: (\S+%) off in the median, (\S+%) at worst; without 1P3D, whose one sender to three receivers no pair of GPUs shows, (\S+%) and (\S+%)\.": (
        r"承载能力：误差中位数 \1，最大 \2；不计 1P3D 时为 \3 和 \4（两块 GPU 看不出它的一个发送端对三个接收端）。"
    ),
    r"Pairs of these deployments that differ by more than 5%: pd-plan has (\d+) of (\d+) in the right order(?:, aiconfigurator (\d+))?\.": (
        r"这些部署中相差超过 5% 的有 \2 对：pd-plan 排对 \1 对，aiconfigurator 排对 \3 对。"
    ),
    r"Fitted to (\[)one GPU(\]\S+) with a later vLLM instead, and with rounded figures of the connectors: capacity (\S+%) off in the median for plain engines \((\S+%) at worst\) and (\S+%) \((\S+%)\) for the others, (\d+) of (\d+) pairs of all deployments in the right order; the worst median errors are (.+)\.": (
        r"改用\1一块 GPU\2、较新的 vLLM 的运行来拟合，connector 用粗略值：普通引擎的承载能力误差中位数 \3（最大 \4），其他部署 \5（最大 \6），所有部署的 \8 对中排对 \7 对；误差中位数最大的是 \9。"
    ),
}


def chinese(lines: Iterable[str]) -> list[str]:
    """The lines in Chinese.

    Raises:
        ValueError: if a phrase of `CHINESE` is in none of them.
    """
    text = "\n".join(lines)
    for english, other in CHINESE.items():
        text, count = re.subn(english, other, text)
        if not count:
            msg = f"docs/write_planning.py: the tables no longer hold {english!r}"
            raise ValueError(msg)
    return text.replace("%, ", "%、").split("\n")


def page(written: str, lines: Iterable[str]) -> str:
    """The page with new tables between the marks."""
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *lines, "", END + after])


def main() -> int:
    """Write both pages; with `--check`, exit status 1 if they are out of date."""
    english, checking, current = list(tables()), sys.argv[1:] == ["--check"], True
    for path, lines in ((PAGE, english), (CHINESE_PAGE, chinese(english))):
        written = path.read_text(encoding="utf-8")
        made = page(written, lines)
        current = current and made == written
        if not checking:
            path.write_text(made, encoding="utf-8")
    return 1 if checking and not current else 0


if __name__ == "__main__":
    sys.exit(main())
