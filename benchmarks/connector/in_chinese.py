# ruff: noqa: INP001 - scripts, not a package
"""The tables of a results page in Chinese, cell by cell."""

import re

CELLS = {
    "": "",
    "none": "无",
    "prompt tokens": "提示词 token 数",
    "plain": "普通",
    "prefill, then decode": "先 prefill，后 decode",
    "both asked at once": "同时请求两者",
    "hand-off": "交接",
    "hand-off, announced": "交接，事先告知 decode",
    "decode chosen late": "最后才选 decode",
    "ms above plain": "比普通晚，ms",
    "plain, no proxy": "普通，无代理",
    "plain, proxy": "普通，经代理",
    "1P1D, proxy": "1P1D，经代理",
    "plain's later tokens": "普通的后续 token",
    "1P1D's later tokens": "1P1D 的后续 token",
    "both asked at once, no proxy": "同时请求两者，无代理",
    "token after the KV": "token 比 KV 晚",
    "hand-off, proxy": "交接，经代理",
    "its token 2 after token 1": "其第 2 个 token 比第 1 个晚",
    "token 1 above plain: after": "首个 token 比普通晚：之后",
    "token 1 above plain: before": "首个 token 比普通晚：之前",
    "token 2 after token 1, p50 / p90: after": "第 2 个 token 比第 1 个晚，p50 / p90：之后",
    "token 2 after token 1, p50 / p90: before": "第 2 个 token 比第 1 个晚，p50 / p90：之前",
    "the same, no proxy: after": "同上，无代理：之后",
    "the same, no proxy: before": "同上，无代理：之前",
    "P2pConnector, hand-off": "P2pConnector，交接",
    "P2pConnector, prefill, then decode": "P2pConnector，先 prefill，后 decode",
    "NIXL's engines, plain": "NIXL 的引擎，普通",
    "NixlConnector, cuda_ipc": "NixlConnector，cuda_ipc",
    "NixlConnector, TCP": "NixlConnector，TCP",
    "prefill hears of it": "prefill 得知请求",
    "queue and launch": "排队和启动",
    "computed, gathered, moved": "计算、收集、搬运",
    "prefill's token sampled after the move": "搬运之后采样出 prefill 的 token",
    "token at the client": "token 到达客户端",
    "decode hears of the part": "decode 得知这一部分",
    "complete, with its token": "连同 token 到齐",
    "the scheduler notices": "调度器发现",
    "scatter launched": "启动 scatter",
    "prefill announces it before the end": "prefill 在结束前预告",
    "decode hears that it is near": "decode 得知 KV 将到",
    "vLLM prepares the step": "vLLM 准备这一步",
    "the step waits for KV": "这一步等待 KV",
    "from complete KV to the token at the client": "从 KV 到齐到 token 到达客户端",
    "scatter alone launched": "仅启动 scatter",
    "in all, from complete KV to the token at the client": "合计，从 KV 到齐到 token 到达客户端",
    "step, and its token at the client": "一步，其 token 到达客户端",
    "TTFT p50 / p90 / p99, ms": "TTFT p50 / p90 / p99，ms",
    "TPOT, ms": "TPOT，ms",
    "longest gap, ms": "最长间隔，ms",
    "requests, failed": "请求数，失败数",
    "there, ms": "到达，ms",
    "in its blocks, ms": "写入自己的块，ms",
    "there while decode is busy, ms": "decode 忙碌时到达，ms",
    "decode's products/s": "decode 每秒矩阵乘法",
    "tests passed": "通过的测试",
    "pairs that passed": "通过的各对",
    "that failed": "失败的",
    "not (wholly) run": "没有（全部）运行的",
    "moved": "转移",
    "whole": "完整",
    "differ from the undisturbed run": "与没有干扰的运行不同",
    "two undisturbed runs differ": "两次没有干扰的运行不同",
    "a plain engine that goes on differs": "普通引擎接着写出的不同",
    "longest pause (undisturbed), s": "最长停顿（没有干扰时），s",
    "sums in one order, batch-invariant": "求和顺序固定，与批次无关",
    "vLLM's defaults": "vLLM 的默认设置",
    "killed": "被杀的引擎",
    "after so many tokens": "被杀时已有的 token",
    "whole and equal": "完整且相同",
    "tried again": "重试",
    "slowest (undisturbed), s": "最慢（没有干扰时），s",
}
# Cells with numbers, as patterns.
FORMS = {
    r"([\d,]+) tokens": r"\1 个 token",
    r"([\d→ ]+) tokens": r"\1 个 token",
    r"([\d,]+) of ([\d,]+)": r"\1/\2",
    r"vLLM ([\d.]+)": r"vLLM \1",
    r"vLLM ([\d.]+), the pairs that were missing": r"vLLM \1，补测的各对",
    r"vLLM ([\d.]+), once more": r"vLLM \1，再测一次",
    r"vLLM ([\d.]+), steps before KV and token": r"vLLM \1，步在 KV 和 token 到齐之前开始",
    r"vLLM ([\d.]+), KV first": r"vLLM \1，先 KV",
    r"vLLM ([\d.]+), KV first where decode writes the first token": r"vLLM \1，decode 写首 token 时先 KV",
    r"([\d,]+), token first": r"\1，先 token",
    r"([\d,]+), KV first": r"\1，先 KV",
    r"([\d,]+), before its KV": r"\1，KV 到齐之前",
    r"([\d,]+), after its KV": r"\1，KV 到齐之后",
    r"first host, ([\d,]+) tokens": r"第一台主机，\1 个 token",
    r"second host, ([\d,]+) tokens": r"第二台主机，\1 个 token",
    r"vLLM ([\d.]+), between two GPUs": r"vLLM \1，两块 GPU 之间",
    r"([\d-]{10}), (\d+) requests each": r"\1，各 \2 个请求",
    r"([\d-]{10}), in turn, (\d+) requests each": r"\1，轮流，各 \2 个请求",
    r"([\d-]{10}), in turn, once more, (\d+) requests each": r"\1，轮流，再测一次，各 \2 个请求",
    r"([\d-]{10}), another, (\d+) requests each": r"\1，另一次，各 \2 个请求",
    r"([\d-]{10}), with steps that begin before their KV, (\d+) requests each": r"\1，步在 KV 到齐之前开始，各 \2 个请求",
    r"([\d-]{10}), with the hand-off's steps, too, (\d+) requests each": r"\1，交接的步也是如此，各 \2 个请求",
    r"([\d-]{10}), announced 2 ms later, another host, (\d+) requests each": r"\1，晚 2 ms 预告，另一台主机，各 \2 个请求",
    r"([\d-]{10}), the same on another host, (\d+) requests each": r"\1，同样，另一台主机，各 \2 个请求",
    r"(\d+)/s per GPU, plain, both GPUs": r"每 GPU 每秒 \1 个，普通，两块 GPU",
    r"(\d+)/s per GPU, 1P1D, both asked at once": r"每 GPU 每秒 \1 个，1P1D，同时请求两者",
    r"(\d+)/s per GPU, 1P1D, announced": r"每 GPU 每秒 \1 个，1P1D，事先告知 decode",
    r"(\d+), (\d+)": r"\1，\2",
    r"([\d,]+ → [\d,]+) \((.+)%\)": r"\1（\2%）",
    r"([\d,.]+) \((.+)\)": r"\1（\2）",
}
# Roles with their numbers, pairs of engines, transports, and numbers alone.
KEPT = re.compile(r"(?:prefill|decode) \d|ms|[\d ]+MiB|vmm|tcp|:?-+:?|[\w-]+-(?:cached|plain)(?:, [\w-]+)*|[^A-Za-z]+")


def translated(table: str) -> str:
    """The table in Chinese.

    Raises:
        ValueError: if a cell has no translation.
    """
    rows = ([_cell(cell.strip()) for cell in row.strip("|").split("|")] for row in table.splitlines())
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    if text in CELLS:
        return CELLS[text]
    for form, chinese in FORMS.items():
        if re.fullmatch(form, text):
            return re.sub(form, chinese, text)
    if KEPT.fullmatch(text):
        return text
    msg = f"in_chinese.py has no translation of {text!r}"
    raise ValueError(msg)
