"""Deployments for the tests on real GPUs: a proxy with a prefill and a decode engine each, and plain vLLM to compare with.

All that the selected tests need start together, because an engine takes a minute to load whether or not others load beside it.
With REHEARSE=1 simulators stand in for vLLM, so that everything but the engines can be tried without a GPU.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from support.stack import ROOT
from support.waiting import until

from pd_contracts.free_ports import free_ports
from pd_contracts.health import probe
from pd_contracts.names import Connector

REHEARSAL = bool(os.environ.get("REHEARSE"))
START_S = 400
SERVED = "random"
MODELS = {"qwen3": ("pd_engine.tiny_model", "8", "1024"), "deepseek": ("pd_engine.tiny_deepseek", "6", "1024")}
# Kernels as P2pNccl's decode has them. With vLLM's default runner and graphs, sums are rounded otherwise, and a model of random
# weights soon has two tokens that are as good as equal: each deployment is compared with plain vLLM on its own kernels.
OLD_RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
OLD_KERNELS = {**OLD_RUNNER, "ENGINE_ARGS": '--compilation-config \'{"cudagraph_mode":"FULL_DECODE_ONLY"}\''}
# A fixed cache instead of a share of what is free, so that engines may load on one GPU at the same time.
CACHE = "--kv-cache-memory-bytes 3221225472"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment to try.

    Attributes:
        engines: variables of its prefill and decode.
        reference: variables of the plain engine that it is compared with; None for none.
        tie_nats: two tokens of which plain vLLM finds one less likely by no more than this are as good as equal.
    """

    name: str
    model: str
    connector: Connector
    engines: dict[str, str] = msgspec.field(default_factory=dict)
    reference: dict[str, str] | None = None
    tie_nats: float = 0.02


# Experts are chosen by comparing numbers, so rounding moves more than in a dense model: of 300 positions of this one, on the CPU,
# float16 chose another token than float32 at 7, which float32 found up to 0.045 nats less likely.
EXPERTS_TIE_NATS = 0.15
CASES = {
    case.name: case
    for case in (
        Case(name="p2p-qwen3", model="qwen3", connector=Connector.P2P_NCCL, reference=OLD_KERNELS),
        Case(name="nixl-qwen3", model="qwen3", connector=Connector.NIXL, reference={}),
        Case(
            name="nixl-qwen3-old-runner",
            model="qwen3",
            connector=Connector.NIXL,
            engines=OLD_KERNELS,
            reference=OLD_KERNELS,
        ),
        Case(
            name="p2p-deepseek",
            model="deepseek",
            connector=Connector.P2P_NCCL,
            reference=OLD_KERNELS,
            tie_nats=EXPERTS_TIE_NATS,
        ),
        Case(
            name="nixl-deepseek",
            model="deepseek",
            connector=Connector.NIXL,
            reference={},
            tie_nats=EXPERTS_TIE_NATS,
        ),
        Case(
            name="p2p-default-runner",
            model="qwen3",
            connector=Connector.P2P_NCCL,
            engines={"GUARD_MODEL_RUNNER": "off", **({"SIM_CORRUPT_KV": "on"} if REHEARSAL else {})},
        ),
    )
}


def gpus() -> int:
    """How many NVIDIA GPUs this machine has."""
    if REHEARSAL:
        return 2
    if shutil.which("nvidia-smi") is None:
        return 0
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.count("GPU ")


class Processes:
    """Local processes with their logs; the group of each is ended at the end."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **variables: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            # vLLM's compiled graphs in a folder of their own: two engines that write the same one at once get in each other's way.
            environment = {**os.environ, "VLLM_CACHE_ROOT": str(self.scratch / "cache" / name), **variables}
            self.running[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for(self, url: str) -> None:
        """Until `url` answers 200; fails with the end of its log as soon as one of the processes ends."""
        until(lambda: probe(url) is None, START_S, f"an answer of {url}", period_s=0.5, while_=self._all_run)

    def _all_run(self) -> bool:
        for name, process in self.running.items():
            assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
        return True

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Deployment:
    """The processes of one case."""

    def __init__(self, case: Case, model: Path, processes: Processes, free: Iterator[int]) -> None:
        self.case = case
        self.processes = processes
        ports = {name: str(next(free)) for name in PORTS}
        self.proxy = f"http://127.0.0.1:{ports['HTTP_PROXY_PORT']}"
        self.engines = [f"http://127.0.0.1:{ports[name]}" for name in ("PREFILL_HTTP_PORT", "DECODE_HTTP_PORT")]
        common = {**engine_variables(model), **ports, "KV_CONNECTOR": case.connector.value, **case.engines}
        arguments = f"{CACHE} {case.engines.get('ENGINE_ARGS', '')}".strip()
        self.processes.start(f"{case.name}-proxy", sys.executable, "-m", "pd_proxy", **ports)
        for gpu, role in enumerate(("prefill", "decode")):
            pinned = {"PD_ROLE": role, "CUDA_VISIBLE_DEVICES": str(gpu), "ENGINE_ARGS": arguments}
            self.processes.start(f"{case.name}-{role}", *ENGINE, **{**common, **pinned})

    def wait_for_engines(self) -> None:
        for url in self.engines:
            self.processes.wait_for(f"{url}/health")

    def wait_until_ready(self) -> None:
        self.wait_for_engines()
        self.processes.wait_for(f"{self.proxy}/ready")

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.proxy}/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


PORTS = (
    "HTTP_PROXY_PORT",
    "PROXY_PORT",
    "PREFILL_HTTP_PORT",
    "DECODE_HTTP_PORT",
    "PREFILL_KV_PORT",
    "DECODE_KV_PORT",
    "COMBINED_HTTP_PORT",
)
MOST_PORTS = len(CASES) * (len(PORTS) + 2)  # of all deployments, and of the plain engines that they are compared with
ENGINE = (sys.executable, "-m", "pd_simulator" if REHEARSAL else "pd_engine")


def engine_variables(model: Path) -> dict[str, str]:
    """What all engines of a model are told."""
    return {
        "MODEL": SERVED if REHEARSAL else str(model),
        "SERVED_MODEL_NAME": SERVED,
        "MAX_MODEL_LEN": "4096",
        "DTYPE": "float16",
        "VLLM_HOST_IP": "127.0.0.1",
        "PROXY_HOST": "127.0.0.1",
        "GPU_MEMORY_UTILIZATION": "0.1",
    }


class Fleet:
    """Everything that runs, with a folder for logs and another one for models and compiled graphs, which nobody wants to keep."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch
        self.deployments: dict[str, Deployment] = {}
        self._free = iter(free_ports(MOST_PORTS))  # asked for at once: minutes pass before an engine binds its own
        self._references: dict[tuple[str, str], tuple[Processes, str]] = {}

    def start(self, names: Iterable[str]) -> None:
        """Make the models that the cases need, then start all their processes at once."""
        cases = [CASES[name] for name in names]
        models = {kind: self._model(kind) for kind in sorted({case.model for case in cases})}
        for case in cases:
            self.deployments[case.name] = Deployment(case, models[case.model], self._processes(), self._free)
            if case.reference is not None and self._key(case) not in self._references:
                self._references[self._key(case)] = self._plain(case, models[case.model], case.reference)

    def reference(self, case: Case) -> str:
        """The address of the plain engine that a case is compared with, once it answers."""
        processes, url = self._references[self._key(case)]
        processes.wait_for(f"{url}/health")
        return url

    def stop(self) -> None:
        for deployment in self.deployments.values():
            deployment.processes.stop()
        for processes, _ in self._references.values():
            processes.stop()

    def _processes(self) -> Processes:
        return Processes(self.folder, self.scratch)

    def _model(self, kind: str) -> Path:
        path = self.scratch / "models" / kind
        if not REHEARSAL:
            module, *size = MODELS[kind]
            text = ROOT / "README.md"  # prompts are token ids: any text makes a tokenizer
            subprocess.run([sys.executable, "-m", module, path, text, *size], check=True)
        return path

    def _key(self, case: Case) -> tuple[str, str]:
        return case.model, json.dumps(case.reference, sort_keys=True)

    def _plain(self, case: Case, model: Path, variables: Mapping[str, str]) -> tuple[Processes, str]:
        processes = self._processes()
        port, discovery = str(next(self._free)), str(next(self._free))
        arguments = f"{CACHE} {variables.get('ENGINE_ARGS', '')}".strip()
        told = {**engine_variables(model), **variables, "ENGINE_ARGS": arguments, "PD_ROLE": "combined"}
        pinned = {"CUDA_VISIBLE_DEVICES": "0", "COMBINED_HTTP_PORT": port, "PROXY_PORT": discovery}
        processes.start(f"plain-{case.model}-{len(self._references)}", *ENGINE, **{**told, **pinned})
        return processes, f"http://127.0.0.1:{port}"


def post(url: str, prompt: list[int], tokens: int, **extra: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of a greedy completion."""
    body: dict[str, Any] = {"model": SERVED, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, **extra}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return int(reply.status), json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
