# ruff: noqa: INP001, T201 - scripts, not a package
"""Engines as processes that outlive the command which started them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import shape
from plan import EnginePlan, Plan

from pd_contracts.health import probe
from pd_contracts.ports import Port, Ports

PORTS = Ports(prefill_http_port=20100, decode_http_port=20200, combined_http_port=20300)
MODEL_NAME = "llama-3.1-8b-shape"
STARTED_S = 420.0  # twelve engines at once compile for minutes
LAST_WORDS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Start and end all engines of a plan; `work` holds their logs and their process ids, `discovery` is where they ping."""

    plan: Plan
    work: Path
    discovery: Port
    simulated: bool = False
    sim_profile: str = "h200-llama3-8b"

    def start(self) -> bool:
        """Start all at once and wait until each is healthy; one that dies ends the wait, and its last words are printed."""
        model = "sim-llama3-8b" if self.simulated else str(shape.write(self.work.absolute() / "model"))
        running = {engine.name: self._process(engine, model) for engine in self.plan.engines}
        self._pids.write_text(json.dumps({name: process.pid for name, process in running.items()}))
        began, waiting = time.monotonic(), {engine.name: engine for engine in self.plan.engines}
        while waiting:
            took = time.monotonic() - began
            for name, engine in list(waiting.items()):
                if running[name].poll() is not None or took > STARTED_S:
                    print(f"{name} did not start in {took:.0f} s:\n{last_words(self.work / f'{name}.log')}")
                    self.stop()
                    return False
                if probe(f"http://127.0.0.1:{port(engine)}/health") is None:
                    print(f"{name} ready after {took:.0f} s", flush=True)
                    del waiting[name]
            time.sleep(0.5)
        return True

    def stop(self) -> None:
        """End every engine that `start` left."""
        for pid in json.loads(self._pids.read_text()).values():
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it died before

    @property
    def _pids(self) -> Path:
        return self.work / "engines.json"

    def _process(self, engine: EnginePlan, model: str) -> subprocess.Popen[bytes]:
        module = "pd_simulator" if self.simulated else "pd_engine"
        with (self.work / f"{engine.name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                env={**os.environ, **self._variables(engine, model)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # outlives this command, and is ended as a whole
            )

    def _variables(self, engine: EnginePlan, model: str) -> dict[str, str]:
        return {
            "PD_ROLE": str(engine.role),
            "INSTANCE": str(engine.instance),
            "PREFILL_HTTP_PORT": str(PORTS.prefill_http_port),
            "DECODE_HTTP_PORT": str(PORTS.decode_http_port),
            "COMBINED_HTTP_PORT": str(PORTS.combined_http_port),
            "VLLM_HOST_IP": engine.address,
            "PROXY_HOST": "127.0.0.1",
            "PROXY_PORT": str(self.discovery),
            "KV_CONNECTOR": str(engine.connector or "P2pNcclConnector"),
            "KV_BATCHED": "on" if engine.batched else "off",
            "MODEL": model,
            "SERVED_MODEL_NAME": MODEL_NAME,
            "MAX_MODEL_LEN": "4096",
            "MAX_NUM_SEQS": "256",
            "MAX_NUM_BATCHED_TOKENS": "8192",
            # The KV cache has a fixed size and is not what happens to be free: engines that share a GPU start together.
            "GPU_MEMORY_UTILIZATION": "0.15",
            "ENGINE_ARGS": f"--kv-cache-memory-bytes {engine.kv_cache_bytes}",
            "DTYPE": "bfloat16",
            "LOAD_FORMAT": "dummy",
            "CUDA_VISIBLE_DEVICES": str(engine.gpu),
            "SIM_GPU": str(engine.gpu),
            "SIM_PROFILE": self.sim_profile,
        }


def port(engine: EnginePlan) -> int:
    """HTTP port of an engine."""
    return PORTS.http(engine.role, engine.instance)


def last_words(log: Path) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_WORDS:])
