"""Pairs of vLLM engines with P2pConnector on one GPU, all started at once because each takes a minute, and small enough to share it.

GPUS=0,1 puts prefill on one GPU and decode on another, which the case of `nccl` needs. REHEARSE=1 runs the same on the CPU, over TCP, with one kind of runner and no graphs.
KV_SETTINGS has more of the connector's settings, as JSON.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.stack import ROOT
from support.vllm_engines import Addressed, ask, series_of

from pd_contracts.free_ports import free_ports
from pd_contracts.health import probe

REHEARSAL = bool(os.environ.get("REHEARSE"))
GPUS = os.environ.get("GPUS", "0,0").split(",")
KV_SETTINGS: dict[str, Any] = json.loads(os.environ.get("KV_SETTINGS", "{}"))
# As containers have it: nothing in common but files (and the network, over which messages go).
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--ipc", "--uts")
START_S = 420
SOURCES = ("services/connector/src", "services/engine/src", "contracts/src")
MODELS = {"qwen3": ("pd_engine.tiny_model", "8", "1024"), "deepseek": ("pd_engine.tiny_deepseek", "6", "1024")}
MIB = 1024**2
COMMON = [
    "--served-model-name",
    "tiny",
    "--max-model-len",
    "4096",
    "--max-num-batched-tokens",
    "512",
    "--max-num-seqs",
    "16",
]
ON_GPU = ["--dtype", "float16", "--gpu-memory-utilization", "0.03", "--kv-cache-memory-bytes", str(768 * MIB)]
# Both halves of the connector are in one process, as on a GPU.
ON_CPU = ["--dtype", "float32", "--block-size", "32", "--distributed-executor-backend", "uni"]
SIZES = '{"cudagraph_capture_sizes": [1, 2, 4, 8, 16]}'
# FlashAttention 3 computes with an FP8 cache in FP8 and gives bfloat16: with float16 vLLM does not start.
FP8 = ("--kv-cache-dtype", "fp8", "--dtype", "bfloat16")
CPU_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@dataclass(frozen=True)
class Case:
    """A pair to try. `tie_nats`: two tokens of which plain vLLM finds one less likely by no more than this are as good as equal."""

    name: str
    model: str = "qwen3"
    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    caches: bool = False
    tie_nats: float = 0.02
    wrapper: tuple[str, ...] = ()
    transport: str = "vmm"


def _case(runner: str, graphs: str, caching: str, **extra: Any) -> Case:
    arguments = ["--enforce-eager"] if graphs == "eager" else ["--compilation-config", SIZES]
    arguments += ["--enable-prefix-caching" if caching == "cached" else "--no-enable-prefix-caching"]
    more = extra.pop("arguments", ())
    name = "-".join((extra.pop("name", "qwen3"), runner, graphs, caching))
    return Case(
        name,
        arguments=(*arguments, *more),
        variables={"VLLM_USE_V2_MODEL_RUNNER": (runner[1] == "2" and "1") or "0"},
        caches=caching == "cached",
        **extra,
    )


# Experts are chosen by comparing numbers, so rounding moves more than in a dense model.
CASES = {
    case.name: case
    for case in (
        *(_case(*kind) for kind in itertools.product(("v2", "v1"), ("graphs", "eager"), ("cached", "plain"))),
        *(_case(run, "graphs", "plain", name="deepseek", model="deepseek", tie_nats=0.15) for run in ("v2", "v1")),
        *(_case(run, "graphs", "plain", name="fp8", arguments=FP8, tie_nats=0.15) for run in ("v2", "v1")),
        _case("v2", "eager", "plain", name="alone", wrapper=ALONE),
        *([_case("v2", "graphs", "plain", name="nccl", transport="nccl")] if len(set(GPUS)) > 1 else []),
    )
}


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return REHEARSAL or shutil.which("nvidia-smi") is not None


@dataclass
class GpuEngine:
    """What `ask` needs of an engine."""

    url: str
    kv: str
    process: subprocess.Popen[bytes]
    log: Path

    def metrics(self) -> dict[str, float]:
        """Values of the connector's series."""
        return series_of(self.url)


class Couple:
    """Two engines of a case, each able to prefill and to decode."""

    def __init__(self, case: Case, model: Path, folder: Path, ports: list[int]) -> None:
        self.case = case
        self.engines = [
            self._start(case, model, folder / f"{case.name}-{name}.log", GPUS[index], ports[2 * index : 2 * index + 2])
            for index, name in enumerate("pd")
        ]

    @staticmethod
    def _start(case: Case, model: Path, log: Path, gpu: str, ports: list[int]) -> GpuEngine:
        http, kv = ports
        extra = {"host": "127.0.0.1", "landing_bytes": 96 * MIB, "staging_bytes": 48 * MIB, "page_bytes": MIB}
        extra |= {"socket_folder": str(log.parent / "sockets"), "load_timeout_s": 20}
        extra |= {"transports": ["tcp"] if REHEARSAL else [case.transport], **KV_SETTINGS}
        config = {
            "kv_connector": "P2pConnector",
            "kv_connector_module_path": "pd_connector.connector",
            "kv_role": "kv_both",
            "kv_port": kv,
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": extra,
        }
        arguments = ["--host", "127.0.0.1", "--port", str(http), *COMMON, *(ON_CPU if REHEARSAL else ON_GPU)]
        arguments += [*case.arguments, "--kv-transfer-config", json.dumps(config)]
        paths = [*(str(ROOT / source) for source in SOURCES), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(paths), "VLLM_CACHE_ROOT": str(log.with_suffix(".cache"))}
        own |= {"CUDA_VISIBLE_DEVICES": gpu, "VLLM_HOST_IP": "127.0.0.1"}
        own |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **(CPU_VARIABLES if REHEARSAL else case.variables)}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*case.wrapper, sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *arguments],
                env={**os.environ, **own},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return GpuEngine(f"http://127.0.0.1:{http}", f"127.0.0.1:{kv}", process, log)

    def ready(self) -> list[GpuEngine]:
        """Wait for both; fails with a log's end as soon as one has ended."""
        deadline = time.monotonic() + START_S
        for engine in self.engines:
            while probe(f"{engine.url}/health") is not None:
                assert engine.process.poll() is None, cause(engine.log.read_text(errors="replace"))
                assert time.monotonic() < deadline, f"{engine.log.name}: no answer within {START_S} s"
                time.sleep(0.3)
        return self.engines

    def stop(self) -> None:
        for engine in self.engines:
            if engine.process.poll() is None:
                os.killpg(engine.process.pid, signal.SIGKILL)
            engine.process.wait()


def cause(log: str) -> str:
    """Why an engine ended: vLLM says it once, far above the end of its log."""
    errors = [line for line in log.splitlines() if re.search(r"\b[A-Z]\w+(Error|Exception): ", line)]
    return "\n".join([*dict.fromkeys(errors), "...", log[-2000:]])


def make_models(kinds: Iterable[str], folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    paths = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}
    for kind in kinds:
        module, *size = MODELS[kind]
        found[kind] = folder / kind
        command = [sys.executable, "-m", module, str(found[kind]), str(ROOT / "README.md"), *size]
        subprocess.run(command, check=True, env=environment)
    return found


class Fleet:
    """All pairs that the selected tests need, started at once."""

    def __init__(self, names: Iterable[str], folder: Path) -> None:
        cases = [CASES[name] for name in names]
        (folder / "sockets").mkdir(parents=True, exist_ok=True)
        models = make_models({case.model for case in cases}, folder)
        ports = free_ports(4 * len(cases))
        self.couples = {
            case.name: Couple(case, models[case.model], folder, ports[4 * index : 4 * index + 4])
            for index, case in enumerate(cases)
        }

    def stop(self) -> None:
        for couple in self.couples.values():
            couple.stop()


def gap_to_best(engine: Addressed, prompt: list[int], token: int) -> float:
    """How much less likely than its first choice an engine finds `token` after `prompt`, in nats; inf if it is not near."""
    answer = ask(engine, prompt, max_tokens=1, logprobs=5, return_tokens_as_token_ids=True)
    likely: dict[str, float] = answer.choice["logprobs"]["top_logprobs"][0]
    name = f"token_id:{token}"
    return max(likely.values()) - likely[name] if name in likely else float("inf")
