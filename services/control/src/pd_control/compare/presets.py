"""Default loads and limits of `pdctl compare` and `pdctl demo`, by engine."""

from typing import Final

import msgspec


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults. Empty rates are found by doubling from `start_rate`, requests per second per GPU.

    `common` are options of pd-loadgen that every point gets.
    """

    input_output: str
    goodput: str
    rates: str = ""
    start_rate: float = 1.0
    duration_s: float | None = None
    common: dict[str, str] = msgspec.field(default_factory=dict)


COMPARE: Final = {
    "vllm": Preset(
        input_output="512:64,2048:128",
        goodput="ttft:500 tpot:20",
        common={"dataset": "random", "warmup": "16"},
    ),
    "sim": Preset(
        input_output="512:64,2048:128",
        goodput="ttft:500 tpot:15",
        common={"dataset": "random", "warmup": "10"},
    ),
    # Engines keep both cores of a small machine busy, so the client looks at its sockets later than on a machine of its own:
    # 50 ms, against a first token after 100 or more.
    "vllm-cpu": Preset(
        input_output="128:16",
        goodput="ttft:1000 tpot:100",
        rates="0.4",
        start_rate=0.1,
        duration_s=120.0,
        common={"dataset": "text", "warmup": "4", "lag_limit_ms": "50"},
    ),
}

# Long prompts and short answers: a prompt stalls a plain engine's decoding for 65 ms, and prefill on its own is 60% busy, so
# that both sides of the trade show. Few tokens per second, so that two small cores carry client, proxy and engines in time.
DEMO: Final = {
    "sim": Preset(
        input_output="4096:64",
        goodput="ttft:500 tpot:8",
        rates="2.5",
        duration_s=30.0,
        common={"dataset": "random", "warmup": "10"},
    ),
    "vllm-cpu": COMPARE["vllm-cpu"],
}

TITLES: Final = {
    "vllm": "Separate prefill and decode against plain vLLM",
    "sim": "Separate prefill and decode against plain vLLM",  # the report has a badge of its own
    "vllm-cpu": "Separate prefill and decode against plain vLLM, on the CPU",
}
