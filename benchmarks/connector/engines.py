# ruff: noqa: INP001, S310 - scripts, not a package; the addresses are their own
"""Two vLLM engines with a connector as local processes: prefill and decode, on one GPU, on one each, or on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVED = "m"


@dataclass
class Pair:
    """Prefill and decode. `arguments` and `settings` are both engines'."""

    model: Path
    folder: Path
    gpus: tuple[str, str] = ("0", "0")
    arguments: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    ports: tuple[int, int] = (31210, 31220)
    trace: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._running: list[subprocess.Popen[bytes]] = []

    def url(self, index: int) -> str:
        return f"http://127.0.0.1:{self.ports[0] + index}"

    def kv(self, index: int) -> str:
        return f"127.0.0.1:{self.ports[1] + 10 * index}"

    def traces(self) -> list[Path]:
        return [self.folder / f"trace-{name}" for name in ("prefill", "decode")]

    def start(self) -> None:
        for index, name in enumerate(("prefill", "decode")):
            config, own = self.connector(index), self.own_variables(index)
            command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(self.model)]
            command += ["--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(self.ports[0] + index)]
            command += ["--kv-transfer-config", json.dumps(config), *self.arguments]
            cache = {"VLLM_CACHE_ROOT": str(self.folder / f"cache-{name}")}
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpus[index], **cache, **own, **self.variables}
            sources = [str(ROOT / f"services/{member}/src") for member in ("connector", "engine")]
            plugins = str(ROOT / "services/engine/src/pd_engine/plugins")  # as in the engines' images
            paths = [*sources, plugins, os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            with (self.folder / f"{name}.log").open("wb") as log:
                self._running.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                    )
                )

    def connector(self, index: int) -> dict[str, Any]:
        """vLLM's `--kv-transfer-config` of one engine."""
        debug = {"trace": str(self.traces()[index])} if self.trace else {}
        return {
            "kv_connector": "P2pConnector",
            "kv_connector_module_path": "pd_connector.connector",
            "kv_role": "kv_both",
            "kv_port": int(self.kv(index).rpartition(":")[2]),
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"host": "127.0.0.1", "debug": debug, **self.settings},
        }

    def own_variables(self, _index: int) -> dict[str, str]:
        """The environment of one engine, beside that of this process."""
        return {}

    def check(self) -> None:
        """End this process if an engine has ended."""
        for index, process in enumerate(self._running):
            if process.poll() is not None:
                sys.exit(f"an engine ended; the end of its log:\n{self.log(index)[-3000:]}")

    def ready(self) -> bool:
        return all(self._answers(index) for index in range(2))

    def _answers(self, index: int) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url(index)}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def log(self, index: int) -> str:
        return (self.folder / f"{('prefill', 'decode')[index]}.log").read_text(errors="replace")

    def metrics(self, index: int) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url(index)}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("pd_kv_")}

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running = []


@dataclass
class NixlPair(Pair):
    """The same with vLLM's own NixlConnector, beside a pair with P2pConnector."""

    ports: tuple[int, int] = (31250, 31260)

    def connector(self, _index: int) -> dict[str, Any]:
        return {"kv_connector": "NixlConnector", "kv_role": "kv_both"}

    def own_variables(self, index: int) -> dict[str, str]:
        host, _, port = self.kv(index).rpartition(":")
        return {"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": port}


def wait(pairs: Sequence[Pair], within_s: float) -> float:
    """Until all answer; the seconds that it took. Ends as soon as an engine has ended."""
    began = time.monotonic()
    while not all(pair.ready() for pair in pairs):
        for pair in pairs:
            pair.check()
        if time.monotonic() - began > within_s:
            sys.exit(f"not all engines answer after {within_s:.0f} s; their logs are in {pairs[0].folder}")
        time.sleep(0.5)
    return time.monotonic() - began
