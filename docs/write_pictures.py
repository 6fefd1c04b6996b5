"""Draws the guides' pictures from the records in results/h200 and from the load generator's own schedules, into assets/pictures.

Each picture is an SVG for every language and theme: the style, the colours and the definitions of the numbers are the report's.
"""

import io
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from pd_analysis.plots import fonts, palette, style, svg
from pd_contracts import latency, records
from pd_contracts.records import RequestRecord
from pd_loadgen.workload.schedule import Arrival, arrivals

DOCS: Final = Path(__file__).parent
OUT: Final = DOCS / "assets/pictures"
RECORDS: Final = DOCS / "results/h200/records"
LANGUAGES: Final = ("en", "zh")
Say = Callable[[str, str], str]


@dataclass(frozen=True)
class Source:
    """Where unpacked records lie."""

    root: Path

    def requests(self, deployment: str, load: str, rate: int) -> list[RequestRecord]:
        """The measured requests of one run that succeeded, by index."""
        (path,) = self.root.glob(f"co/{deployment}/{load}/rate-{rate}-seed-1/{records.REQUESTS}")
        found = [
            each for each in records.read_lines(path, RequestRecord) if not each.warmup and latency.succeeded(each)
        ]
        return sorted(found, key=lambda each: each.index)


@contextmanager
def unpacked(names: Sequence[str]) -> Iterator[Source]:
    """The records of some deployments, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            with tarfile.open(RECORDS / f"{name}.tar.xz") as archive:
                archive.extractall(folder, filter="data")
        yield Source(Path(folder))


def bare(axes: Axes) -> None:
    """Only what is drawn: no axes, no grid."""
    axes.set_axis_off()
    axes.set_xlim(-0.6, 100.6)
    axes.set_ylim(0, 100)


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], text: str, colour: str) -> None:
    """A box with words in its middle; places and sizes in hundredths of the picture."""
    patch = FancyBboxPatch(at, *size, boxstyle="round,pad=0,rounding_size=1.6", fc=palette.SHADE, ec=colour, lw=1.8)
    axes.add_patch(patch)
    axes.text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ha="center", va="center", size=9.5, linespacing=1.4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", lift: float = 3.0) -> None:
    """An arrow, with words above its middle."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": palette.MUTED, "lw": 1.4})
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + lift)
    axes.text(*middle, text, ha="center", va="bottom", size=8.5, color=palette.MUTED, linespacing=1.3)


def architecture(say: Say, _: Source) -> Figure:
    """Who speaks with whom, and where records come from."""
    figure = style.canvas(
        say("One request passes two engines", "一个请求经过两个引擎"),
        say("prefill reads the prompt, decode writes the answer", "prefill 读提示词，decode 写回答"),
        2.5,
        simulated=False,
        left=0.1,
        right=0.1,
        bottom=0.1,
    )
    axes = figure.subplots()
    bare(axes)
    box(axes, (0, 52), (16, 26), say("load generator\nor your users", "负载生成器\n或你的用户"), palette.GREY)
    box(axes, (31, 52), (16, 26), say("proxy\nOpenAI API", "代理\nOpenAI API"), palette.BLUE)
    box(axes, (72, 70), (27, 26), say("prefill engine\nGPU 0", "prefill 引擎\nGPU 0"), palette.AMBER)
    box(axes, (72, 22), (27, 26), say("decode engine\nGPU 1", "decode 引擎\nGPU 1"), palette.GREEN)
    arrow(axes, (16.6, 68), (30.4, 68), say("requests", "请求"))
    arrow(axes, (30.4, 61), (16.6, 61), say("tokens", "token 流"), lift=-12)
    arrow(axes, (47.6, 70), (71.4, 84), say("1  prompt", "1  提示词"), lift=4)
    arrow(axes, (47.6, 60), (71.4, 38), say("2  all tokens", "2  全部 token"), lift=-22)
    arrow(axes, (85.5, 69.4), (85.5, 48.8))
    axes.text(87, 59, say("KV cache", "KV cache"), size=8.5, color=palette.MUTED, va="center")
    box(axes, (31, 2), (16, 22), say("monitor", "监控"), palette.PURPLE)
    box(axes, (0, 2), (16, 22), say("report", "报告"), palette.VERMILION)
    arrow(axes, (71.4, 26), (47.6, 15), say("power, clocks", "功耗、频率"), lift=-14)
    arrow(axes, (30.4, 13), (16.6, 13), say("records", "记录"))
    arrow(axes, (8, 51.4), (8, 24.8))
    return figure


def one_request(say: Say, source: Source) -> Figure:
    """One measured request: each token's arrival, and what the numbers are read from."""
    requests = source.requests("3p1d-batched", "2048-128", 8)
    middle = sorted(requests, key=lambda each: latency.ttft(each) or 0)[len(requests) // 2]
    times = 1000 * (np.array([at for at, _ in middle.chunks]) - middle.scheduled)
    ttft, e2el, tpot = times[0], times[-1], 1000 * (latency.tpot(middle) or 0)
    figure = style.canvas(
        say("One request, and the four numbers that are read from it", "一个请求，以及从中读出的四个指标"),
        say(
            f"H200, 2,048 tokens in, {len(times)} tokens out; each mark is a token that arrived",
            f"H200 实测，输入 2048 个 token，输出 {len(times)} 个；每个竖线是一个到达的 token",
        ),
        1.75,
        simulated=False,
        left=0.3,
    )
    axes = figure.subplots()
    style.quiet(axes, grid="x")
    axes.set_yticks([])
    axes.set_ylim(-1.3, 10)
    axes.set_xlim(-0.02 * e2el, 1.03 * e2el)
    axes.set_xlabel(say("milliseconds since the request was due", "距计划发送时刻的毫秒数"))
    axes.axvspan(0, ttft, 0.19, 0.49, color=palette.AMBER, alpha=0.35, lw=0)
    axes.vlines(times, 0.8, 4.2, color=palette.GREEN, lw=1.1)
    axes.text(
        ttft / 2, 2.5, say("waiting\n+ prefill\n+ KV", "排队\n+ prefill\n+ KV 传输"), ha="center", va="center", size=8.5
    )
    _span(axes, (0, ttft), 6, f"TTFT {ttft:.0f} ms")
    _span(
        axes,
        (ttft, e2el),
        6,
        say(f"TPOT {tpot:.1f} ms = this span / {len(times) - 1}", f"TPOT {tpot:.1f} ms = 这一段 / {len(times) - 1}"),
    )
    _span(axes, (0, e2el), 8.4, f"E2EL {e2el:.0f} ms")
    place = len(times) * 3 // 4
    gap = times[place + 1] - times[place]
    axes.annotate(
        say(f"ITL: one gap between tokens, here {gap:.1f} ms", f"ITL：相邻两个 token 的间隔，这里是 {gap:.1f} ms"),
        ((times[place] + times[place + 1]) / 2, 0.7),
        (0, -3),
        textcoords="offset points",
        ha="center",
        va="top",
        size=8.5,
        color=palette.MUTED,
    )
    return figure


def _span(axes: Axes, ends: tuple[float, float], height: float, text: str) -> None:
    axes.annotate(
        "",
        (ends[1], height),
        (ends[0], height),
        arrowprops={"arrowstyle": "<->", "color": palette.INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0},
    )
    axes.text(sum(ends) / 2, height + 0.3, text, ha="center", va="bottom", size=9)


def arrival_kinds(say: Say, _: Source) -> Figure:
    """When requests come: three schedules of one rate."""
    kinds = {
        say("constant", "恒定间隔"): arrivals(rate=4, duration=10, seed=7, arrival=Arrival.CONSTANT),
        say("Poisson", "泊松到达"): arrivals(rate=4, duration=10, seed=7, arrival=Arrival.POISSON),
        say("bursts (gamma, 0.25)", "突发（gamma，0.25）"): arrivals(
            rate=4, duration=10, seed=7, arrival=Arrival.GAMMA, burstiness=0.25
        ),
    }
    figure = style.canvas(
        say("Three schedules of 4 requests per second", "三种到达过程，平均都是每秒 4 个请求"),
        say("open loop: computed before the start, whatever the server does", "开环：开始前就已算好，与服务器快慢无关"),
        1.3,
        simulated=False,
        left=style.room_for(kinds),
    )
    axes = figure.subplots()
    style.quiet(axes, grid="x")
    for place, (times, colour) in enumerate(
        zip(kinds.values(), (palette.GREY, palette.BLUE, palette.VERMILION), strict=True)
    ):
        axes.vlines(times, -place - 0.32, -place + 0.32, color=colour, lw=1.8)
    axes.set_yticks([-place for place in range(len(kinds))], list(kinds))
    axes.set_xlim(0, 10)
    axes.set_xlabel(say("seconds", "秒"))
    return figure


def percentile_error(say: Say, source: Source) -> Figure:
    """How far a percentile of few requests may be from that of many."""
    values = np.array([1000 * (latency.ttft(each) or 0) for each in source.requests("combined4", "512-64", 44)])
    sizes = [20, 50, 100, 200, 500, 1000]
    generator = np.random.default_rng(0)
    figure = style.canvas(
        say("A p99 of few requests is luck", "请求太少时，p99 基本靠运气"),
        say(
            f"TTFT of {len(values):,} requests on four H200; bands hold 90% of 2,000 random selections",
            f"四块 H200 上 {len(values)} 个请求的 TTFT；色带包含 2000 次随机抽样的 90%",
        ),
        2.2,
        simulated=False,
        entries=2,
    )
    axes = figure.subplots()
    style.quiet(axes)
    for name, q, colour in (("p50", 50, palette.BLUE), ("p99", 99, palette.VERMILION)):
        drawn = [np.percentile(generator.choice(values, (2000, size)), q, axis=1) for size in sizes]
        low, middle, high = (np.array([np.percentile(each, part) for each in drawn]) for part in (5, 50, 95))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.25, lw=0)
        axes.plot(sizes, middle, color=colour, marker="o", ms=4, label=f"TTFT {name}")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set_ylabel("ms")
    axes.set_xlabel(say("requests measured", "测量的请求数"))
    style.key(figure, axes.get_legend_handles_labels()[0])
    return figure


def saturation(say: Say, source: Source) -> Figure:
    """Latency against rate, up to where it leaves the limit."""
    rates = [1, 3, 5, 8, 11, 15]
    figure = style.canvas(
        say("Latency is flat until the deployment saturates", "饱和之前延迟平稳，饱和之后急剧上升"),
        say(
            "TTFT p99, 2,048 tokens in, 128 out; runs of 6 to 11 s",
            "TTFT p99，输入 2048，输出 128；每次运行 6 到 11 秒",
        ),
        2.2,
        simulated=False,
        entries=2,
    )
    axes = figure.subplots()
    style.quiet(axes)
    names = {
        "combined4": say("plain vLLM", "普通 vLLM"),
        "1p1d": say("1P1D, stock P2P NCCL", "1P1D，vLLM 自带 P2P NCCL"),
    }
    for position, (deployment, name) in enumerate(names.items()):
        values = [
            np.percentile(
                [1000 * (latency.ttft(each) or 0) for each in source.requests(deployment, "2048-128", rate)], 99
            )
            for rate in rates
        ]
        axes.plot(rates, values, color=palette.run_colour(position), marker=palette.run_marker(position), label=name)
    axes.set_yscale("log")
    axes.set_yticks([50, 100, 500, 1000, 5000], ["50", "100", "500", "1,000", "5,000"])
    axes.minorticks_off()
    axes.set_ylabel("ms")
    axes.set_xlabel(say("requests per second per GPU", "每 GPU 每秒请求数"))
    style.limit_line(axes, 500, say("limit", "上限"))
    style.key(figure, axes.get_legend_handles_labels()[0])
    return figure


PICTURES: Final[Mapping[str, Callable[[Say, Source], Figure]]] = {
    "architecture": architecture,
    "one-request": one_request,
    "arrivals": arrival_kinds,
    "percentiles": percentile_error,
    "saturation": saturation,
}


def say_in(language: str) -> Say:
    """Chooses between the English and the Chinese words."""
    return lambda english, chinese: chinese if language == "zh" else english


def save(figure: Figure, name: str) -> None:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    for theme in ("light", "dark"):
        text = svg.themed(buffer.getvalue(), dark=theme == "dark")
        (OUT / f"{name}.{theme}.svg").write_text(text, encoding="utf-8")


def main() -> int:
    """Draw all of them, or those that are named."""
    OUT.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:] or list(PICTURES)
    with unpacked(["combined4", "1p1d", "3p1d-batched"]) as source:
        for language in LANGUAGES:
            with style.apply(fonts.chinese_font() if language == "zh" else None), fonts.without_remarks():
                for name in wanted:
                    save(PICTURES[name](say_in(language), source), f"{name}.{language}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
