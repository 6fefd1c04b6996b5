"""`pdctl demo`: its defaults by engine, and what it says at its beginning and end."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pd_control.context import Context, open_context
from pd_control.demo import comparison
from pd_control.demo.load import Load
from pd_control.docker.compose import Stack
from pd_control.planning import free_ports
from pd_control.supervision import supervisor
from pd_control.terminal import age

PROJECT = "pdstack-demo"
LOADS = {
    # Long prompts and short answers: a prompt stalls a plain engine's decoding for 65 ms, and prefill on its own is 60 % busy, so
    # that both sides of the trade show. Few tokens a second, so that two small cores carry client, proxy and engines in time.
    "sim": Load(rate=5.0, duration_s=30.0, input_tokens=4096, output_tokens=64, goodput="ttft:500 tpot:8"),
    # Engines keep both cores of a small machine busy, so the client looks at its sockets later than on a machine of its own:
    # 50 ms, against a first token after 100 or more.
    "vllm-cpu": Load(
        rate=0.8,
        duration_s=120.0,
        input_tokens=128,
        output_tokens=16,
        dataset="text",
        warmup=4,
        goodput="ttft:1000 tpot:100",
        lag_limit_ms=50,
    ),
}
TITLES = {
    "sim": "Prefill and decode apart against plain vLLM (SIMULATED)",
    "vllm-cpu": "Prefill and decode apart against plain vLLM, on the CPU",
}


def demo_context(start: Path, own: Mapping[str, str], options: argparse.Namespace) -> Context:
    """A context apart from the deployment of `pdctl up`.

    The simulated comparison leaves `.env` out: its numbers must not depend on what somebody serves on this machine. Its
    processes listen on the loopback only.
    """
    if options.engine == "sim":
        return open_context(start, {"BIND_HOST": "127.0.0.1", **own}, dotenv=False, folder="demo")
    context = open_context(start, own, folder="demo")
    moved = free_ports.choose({"http_proxy_port": [context.settings.http_proxy_port]}, supervisor.is_free)
    return open_context(start, {**own, **{key.upper(): str(port) for key, port in moved.items()}}, folder="demo")


def demo(context: Context, options: argparse.Namespace) -> int:
    """Compare, and say how long it took."""
    begin = time.monotonic()
    load = load_of(options)
    terminal = context.terminal
    terminal.title(TITLES[options.engine])
    terminal.note(describe(load))
    if options.engine == "sim":
        terminal.note(
            "SIMULATED: the engines only behave like vLLM on H200; none of these numbers was measured on a GPU"
        )
        stage = comparison.process_stage(context, options.patience)
    else:
        log = context.store.log("compose")
        terminal.note(f"what docker compose says goes to {log}; building images takes minutes the first time")
        stack = Stack(context.root, context.environment, PROJECT, log)
        stage = comparison.container_stage(context, stack, options.patience)
    with context.store.lock():
        status = comparison.run(context, stage, load, Path(options.out), TITLES[options.engine])
    terminal.note(f"all of it took {age(time.monotonic() - begin)}")
    terminal.say(str(Path(options.out) / "report.html"))
    return status


def load_of(options: argparse.Namespace) -> Load:
    """The engine's default load with the user's changes."""
    given = {
        "rate": options.rate,
        "duration_s": options.duration,
        "input_tokens": options.input_tokens,
        "output_tokens": options.output_tokens,
        "seed": options.seed,
        "dataset": options.dataset,
    }
    return msgspec.structs.replace(
        LOADS[options.engine], **{key: value for key, value in given.items() if value is not None}
    )


def describe(load: Load) -> str:
    """The load in a line."""
    return (
        f"each gets {load.rate:g} requests/s for {load.duration_s:g} s, "
        f"{load.dataset} prompts of {load.input_tokens} tokens, answers of {load.output_tokens}, seed {load.seed}"
    )
