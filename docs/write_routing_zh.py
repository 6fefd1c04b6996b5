"""Writes docs/routing-results.zh.md from docs/routing-results.md, line by line and cell by cell; `--check` only says whether it is up to date."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chinese import UntranslatedError, by_lines, write

ENGLISH: Final = Path(__file__).with_name("routing-results.md")

# Whole lines, as patterns, because some hold numbers; and sentences of a line that has several.
LINES: Final = {
    r"# Routing, simulated": "# 按负载路由：模拟结果",
    r"\*\*All numbers here are simulated\.\*\*": "**本页的数字都是模拟结果。**",
    r"The engines have the profile `h200-llama3-8b` \(H200, Llama-3\.1-8B's shape\) and run in virtual time; the proxy's own code decides\.": (
        "引擎采用 profile `h200-llama3-8b`（H200，Llama-3.1-8B 的结构），在虚拟时间里运行；做决定的是代理自己的代码。"
    ),
    r"`make bench-routing` writes this page\.": "本页由 `make bench-routing` 写出。",
    r"The step model has no prefix cache, no jitter, and of the CPU's limits only the launch of steps; the lengths of prompts are known exactly; with P2pConnector, decode writes the first token\.": (
        "单步模型不含前缀缓存和抖动，CPU 的限制只计入每一步的启动；提示词的长度是准确知道的；使用 P2pConnector 时，首个 token 由 decode 写出。"
    ),
    r"\[Two H200\]\(routing\.md#measured-on-two-h200\) were measured with two of these traffics\.": (
        "其中两种流量在[两块 H200](routing.md#在两块-h200-上实测) 上实测过。"
    ),
    r"The lengths of Azure's and Mooncake's traffics are log-normal with the published medians and means; they are not the traces themselves\.": (
        "Azure 和 Mooncake 流量的长度服从对数正态分布，中位数和平均值取自公开的数据；并不是 trace 本身。"
    ),
    r"Capacity is the highest Poisson rate at which nine in ten requests meet both objectives \(TTFT/TPOT, ms\), in requests per second per engine\.": (
        "容量是让十分之九的请求同时达到两个目标（TTFT/TPOT，ms）的最高泊松速率，单位是每引擎每秒请求数。"
    ),
    r"\*Best static\* is the best XpYd for that row, chosen afterwards; it and \*plain\* choose engines by predicted load and decode late, so they are better than round robin\.": (
        "*最佳固定配比*是事后为该行选出的最好的 XpYd；它和*普通引擎*都按预测的负载选择引擎，并且到最后才决定由谁 decode，所以比轮流分配更好。"
    ),
    r"\*Adaptive\* has the same settings in all rows\.": "*自适应*在所有行中使用同样的设置。",
    r"(\d+) engines\.": "{0} 个引擎。",
    r"Seeds ([\d, ]+): at most (\S+) s or ([\d,]+) requests per load\.": "种子 {0}：每份负载最多 {1} s 或 {2} 个请求。",
    r"(\d+) of (\d+) traffics, seeds ([\d, ]+)\.": "{1} 种流量中的 {0} 种，种子 {2}。",
    r"Numbers are means over the seeds that a row was measured with; in brackets is the worst seed\.": (
        "数字是该行测过的各种子的平均值；括号里是最差的种子。"
    ),
    # Lines of several seeds come first, because the others would match them, too.
    r"- Bursts: geometric mean (\S+), worst (\S+) \((.+)\), worst seed (\S+) \((.+)\)\.": (
        "- 突发：几何平均 {0}，最差 {1}（{2}），最差的种子 {3}（{4}）。"
    ),
    r"- Costs × (\S+): geometric mean (\S+), worst (\S+) \((.+)\), worst seed (\S+) \((.+)\)\.": (
        "- 耗时 × {0}：几何平均 {1}，最差 {2}（{3}），最差的种子 {4}（{5}）。"
    ),
    r"- (\d+) rows that the rule's numbers were found with: geometric mean (\S+), worst (\S+) \((.+)\), worst seed (\S+) \((.+)\), best (\S+)\.": (
        "- 用来确定规则参数的 {0} 行：几何平均 {1}，最差 {2}（{3}），最差的种子 {4}（{5}），最好 {6}。"
    ),
    r"- (\d+) new rows: geometric mean (\S+), worst (\S+) \((.+)\), worst seed (\S+) \((.+)\), best (\S+)\.": (
        "- {0} 个新的行：几何平均 {1}，最差 {2}（{3}），最差的种子 {4}（{5}），最好 {6}。"
    ),
    r"- Bursts: geometric mean (\S+), worst (\S+) \((.+)\)\.": "- 突发：几何平均 {0}，最差 {1}（{2}）。",
    r"- Costs × (\S+): geometric mean (\S+), worst (\S+) \((.+)\)\.": "- 耗时 × {0}：几何平均 {1}，最差 {2}（{3}）。",
    r"- (\d+) rows that the rule's numbers were found with: geometric mean (\S+), worst (\S+) \((.+)\), best (\S+)\.": (
        "- 用来确定规则参数的 {0} 行：几何平均 {1}，最差 {2}（{3}），最好 {4}。"
    ),
    r"- (\d+) new rows: geometric mean (\S+), worst (\S+) \((.+)\), best (\S+)\.": (
        "- {0} 个新的行：几何平均 {1}，最差 {2}（{3}），最好 {4}。"
    ),
    r"- At (\S+) ×: geometric mean (\S+), worst (\S+) \((.+)\), worst load (\S+) \((.+)\)\.": (
        "- {0} ×：几何平均 {1}，最差 {2}（{3}），最差的一份负载 {4}（{5}）。"
    ),
    r"- (\d+) rows: geometric mean (\S+), worst (\S+) \((.+)\), worst seed (\S+) \((.+)\), best (\S+)\.": (
        "- {0} 行：几何平均 {1}，最差 {2}（{3}），最差的种子 {4}（{5}），最好 {6}。"
    ),
    r"- (\d+) rows: geometric mean (\S+), worst (\S+) \((.+)\), best (\S+)\.": (
        "- {0} 行：几何平均 {1}，最差 {2}（{3}），最好 {4}。"
    ),
    r"## Early rejection": "## 提前拒绝",
    r"With `REJECT=slo`: the share of requests turned away at 0\.9 times the capacity of \*adaptive\*, and the requests served in time at 1\.3 times, as a share of that capacity\.": (
        "设置 `REJECT=slo`：负载为*自适应*容量的 0.9 倍时被拒绝的请求比例，以及 1.3 倍时按时完成的请求（相对于该容量）。"
    ),
    r"## Overload, bursts, and costs that are wrong": "## 过载、突发，以及不准确的耗时",
    r"\*Kept\*: requests served in time at 1\.3 times the capacity of adaptive, as a share of that capacity, with `REJECT=slo` and without it; \*rejected\*: share of requests turned away at 0\.9 times\.": (
        "*完成*：负载为自适应容量的 1.3 倍时按时完成的请求（相对于该容量），设置 `REJECT=slo` 与否；*拒绝*：0.9 倍时被拒绝的请求比例。"
    ),
    r"\*Bursts\*: gaps with a coefficient of variation of 2, adaptive against the best plain or static one\.": (
        "*突发*：间隔的变异系数为 2，自适应与普通引擎和固定配比中较好的一个相比。"
    ),
    r"\*0\.85\* and \*1\.2\*: capacity of adaptive if it takes steps for 0\.85 and 1\.2 times as long as they are \(beside STEP_MARGIN\), against its own\.": (
        "*0.85* 和 *1.2*：把每一步的耗时当作实际的 0.85 倍和 1.2 倍时（STEP_MARGIN 之外），自适应的容量与原来之比。"
    ),
    r"## Overload of engines at work": "## 工作中的引擎过载",
    r"With `REJECT=slo`, each load has three levels of 30 s: 0\.85 times the capacity of \*adaptive\*, then 1\.1, 1\.3 or 2 times, then 0\.8 times\.": (
        "设置 `REJECT=slo`，每份负载有三段，各 30 s：*自适应*容量的 0.85 倍，然后是 1.1、1.3 或 2 倍，最后是 0.8 倍。"
    ),
    r"\*Kept\*: requests of the second level that are served in time, as a share of the capacity; means of three loads, and in brackets the worst one\.": (
        "*完成*：第二段中按时完成的请求，相对于容量；三份负载的平均值，括号里是最差的一份。"
    ),
    r"\*Rejected before\* and \*after\*: share of the requests turned away in the first level \(from 8 s on\) and in the third one, in the worst of the nine loads\.": (
        "*之前拒绝*和*之后拒绝*：第一段（从 8 s 起）和第三段中被拒绝的请求比例，取九份负载中最差的一份。"
    ),
    r"\*Again\*: seconds from the end of the overload until nine in ten requests of the next 5 s are in time, in the worst load\.": (
        "*恢复*：从过载结束起，到之后 5 s 内的请求有十分之九按时完成为止的秒数，取最差的一份负载。"
    ),
    r"## Traffics that change": "## 变化的流量",
    r"Within 90 s lengths drift from the first to the last, the rate rises and falls by 70% twice, or another tenant begins in the middle\.": (
        "在 90 s 之内，长度从最初的值逐渐变到最后的值，或者速率两次升降 70%，或者另一个租户在中途开始。"
    ),
    r"Prompts of 512 to 8,192 tokens have answers of 128, and answers of 32 to 512 have prompts of 2,048; documents are 6,000→64, and long answers 256→900\.": (
        "512 到 8,192 个 token 的提示词有 128 个 token 的回答，32 到 512 个 token 的回答有 2,048 个 token 的提示词；文档是 6,000→64，长回答是 256→900。"
    ),
    r"Capacity is for all of it, from 8 s on; \*best static\* is the best XpYd for the whole\.": (
        "容量针对整段负载（从 8 s 起）；*最佳固定配比*是对整段最好的 XpYd。"
    ),
    r"Seeds ([\d, ]+)\.": "种子 {0}。",
}
CELLS: Final = {
    "traffic, TTFT/TPOT ms": "流量，TTFT/TPOT ms",
    "plain": "普通引擎",
    "best static": "最佳固定配比",
    "adaptive": "自适应",
    "handed over at 0.9 ×": "0.9 × 时交接的请求",
    "adaptive ÷ best": "自适应 ÷ 最佳",
    "rejected at 0.9 ×": "0.9 × 时拒绝",
    "kept at 1.3 ×": "1.3 × 时完成",
    "kept at 1.1 ×": "1.1 × 时完成",
    "kept at 2 ×": "2 × 时完成",
    "rejected before": "之前拒绝",
    "rejected after": "之后拒绝",
    "again, s": "恢复，s",
    "without": "不设置时",
    "bursts": "突发",
}
# Traffics, whose names stand before their objectives.
WORDS: Final = {
    "conversation and code in opposite waves": "对话与代码此消彼长",
    "conversation, then documents too": "对话，后来加上文档",
    "code, then long answers too": "代码，后来加上长回答",
    "waves of conversation": "对话的波动",
    "prompts grow": "提示词变长",
    "prompts shrink": "提示词变短",
    "answers grow": "回答变长",
    "answers shrink": "回答变短",
    "Mooncake's conversation": "Mooncake 的对话",
    "half and half": "各占一半",
    "conversation": "对话",
    "code": "代码",
    "drift": "漂移",
    " (new)": "（新）",
    ", ": "，",
}


def translated(english: str) -> str:
    """The page in Chinese.

    Raises:
        UntranslatedError: if something on it has no translation.
    """
    page: str = by_lines(english, _line, _cells)
    return page


def _line(line: str) -> str:
    if not line:
        return line
    for pattern, chinese in LINES.items():
        if found := re.fullmatch(pattern, line):
            return chinese.format(*map(_traffic, found.groups()))
    raise UntranslatedError(line)


def _cells(row: str) -> Iterator[str]:
    for cell in row.strip("|").split("|"):
        text = cell.strip()
        yield CELLS[text] if text in CELLS else _traffic(text)


def _traffic(text: str) -> str:
    for english, chinese in WORDS.items():
        text = text.replace(english, chinese)
    if re.search(r"[A-Za-z]{3}", text.replace("Mooncake", "")):
        raise UntranslatedError(text)
    return text


if __name__ == "__main__":
    sys.exit(write(ENGLISH, translated))
