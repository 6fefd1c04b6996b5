"""Real vLLM engines on the CPU with P2pConnector, each in a container of its own on one network, or as local processes of another vLLM."""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from support.connector_relay import Relay
from support.stack import ROOT

from pd_contracts.free_ports import free_ports
from pd_contracts.health import probe

IMAGE = "vllm/vllm-openai-cpu:v0.32.0"
SOURCES = ("services/connector/src", "services/engine/src")
HTTP_PORT = 8000
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# The tokenizer is trained on it, so another word in it makes another model.
SAMPLE = Path(__file__).with_name("engine_text.txt")
# Small steps, so that prompts are computed in chunks.
ARGUMENTS = [
    "--served-model-name",
    "tiny",
    "--enforce-eager",
    "--max-model-len",
    "2048",
    "--dtype",
    "float32",
    "--block-size",
    "32",
]
ARGUMENTS += ["--max-num-batched-tokens", "256", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
START_S = 1200  # three engines at once, beside whatever else this machine does


def run(*command: str, timeout: float = 300) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


class Site:
    """What the engines of a test share: a network, a model, and perhaps a relay before the KV port of one of them."""

    def __init__(self, folder: Path, python: str = "") -> None:
        """`python` has the vLLM to run, as local processes; without it the image's runs in containers."""
        self.folder = folder
        self.python = python
        self.relays: dict[str, Relay] = {}
        self.name = f"pd-connector-{os.getpid()}"
        self.engines: dict[str, Engine] = {}
        self.subnet = f"10.{random.SystemRandom().randint(201, 250)}.{random.SystemRandom().randint(0, 255)}"
        if not python:
            run("docker", "network", "create", "--subnet", f"{self.subnet}.0/24", self.name)
        self._make_model()

    def _make_model(self) -> None:
        make = ("-m", "pd_engine.tiny_model", str(self._seen("models/tiny")), str(self._seen("text")))
        (self.folder / "text").write_text(SAMPLE.read_text())
        if self.python:
            subprocess.run([self.python, *make], env={**os.environ, **self.environment()}, check=True, timeout=300)
        else:
            run("docker", "run", "--rm", *self.options(), "--entrypoint", "python3", IMAGE, *make)

    def _seen(self, path: str) -> Path:
        """Where an engine sees a file of the folder."""
        return self.folder / path if self.python else Path("/site") / path

    def environment(self, **more: str) -> dict[str, str]:
        sources = [str(ROOT / source) if self.python else f"/src{index}" for index, source in enumerate(SOURCES)]
        return {**VARIABLES, "PYTHONPATH": ":".join(sources), **more}

    def options(self, **more: str) -> list[str]:
        found = ["--shm-size", "512m", "--volume", f"{self.folder}:/site"]
        for index, source in enumerate(SOURCES):
            found += ["--volume", f"{ROOT / source}:/src{index}:ro"]
        for name, value in self.environment(**more).items():
            found += ["--env", f"{name}={value}"]
        return found

    def start(
        self, name: str, *arguments: str, relayed: bool = False, together: bool = False, **extra: Any
    ) -> "Engine":
        """Start an engine, or start it anew at the same address with other settings.

        `together`: the connector's two halves are in one process, as on a GPU; otherwise a CPU engine has its worker in another one.
        `relayed`: others reach its KV port through a relay, which has the same port at the address that the host has in the containers' network.
        """
        before = self.engines.get(name)
        engine = Engine(self, name, before.place if before else len(self.engines) + 2, before)
        self.engines[name] = engine
        if relayed and name not in self.relays:
            self.relays[name] = Relay((f"{self.subnet}.1", engine.ports[1]), (engine.host, engine.ports[1]))
        if relayed:
            engine.kv = self.relays[name].address
        more = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if together else {}
        if together:
            arguments += ("--distributed-executor-backend", "uni")
        engine.start(self._seen("models/tiny"), arguments, extra, more)
        return engine

    def stop(self) -> None:
        for engine in self.engines.values():
            engine.kill()
            engine.keep_log()
        for relay in self.relays.values():
            relay.close()
        if not self.python:
            run("docker", "network", "rm", self.name)


class Engine:
    """One engine; `place` numbers it on the network."""

    def __init__(self, site: Site, name: str, place: int, before: "Engine | None") -> None:
        self.site, self.name, self.place = site, name, place
        self.container = f"{site.name}-{name}"
        self._process: subprocess.Popen[bytes] | None = None
        if site.python:
            host, ports = "127.0.0.1", (before.ports if before else tuple(free_ports(2)))
        else:
            host, ports = f"{site.subnet}.{place}", (HTTP_PORT, before.ports[1] if before else free_ports(1)[0])
        self.ports: tuple[int, ...] = ports
        self.host = host
        self.url = f"http://{host}:{ports[0]}"
        self.kv = f"{host}:{ports[1]}"

    def start(self, model: Path, arguments: tuple[str, ...], extra: dict[str, Any], more: dict[str, str]) -> None:
        """`extra` are the connector's settings, `more` variables."""
        config = {
            "kv_connector": "P2pConnector",
            "kv_connector_module_path": "pd_connector.connector",
            "kv_role": "kv_both",
            "kv_port": self.ports[1],
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"host": self.kv.rpartition(":")[0], "transports": ["tcp"], **extra},
        }
        serve = ["--model", str(model), "--host", self.host, "--port", str(self.ports[0]), *ARGUMENTS, *arguments]
        serve += ["--kv-transfer-config", json.dumps(config)]
        if self.site.python:
            with (self.site.folder / f"{self.name}.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self.site.python, "-m", "vllm.entrypoints.cli.main", "serve", *serve[1:]],
                    env={**os.environ, **self.site.environment(**more), "VLLM_HOST_IP": self.host},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        else:
            subprocess.run(["docker", "rm", "--force", self.container], capture_output=True, check=False)
            run(
                "docker", "run", "--detach", "--name", self.container, "--network", self.site.name, "--ip", self.host,
                *self.site.options(**more), IMAGE, *serve,
            )  # fmt: skip

    def ready(self) -> "Engine":
        """Wait until it answers; fails with its log's end as soon as it has ended."""
        deadline = time.monotonic() + START_S
        while probe(f"{self.url}/health") is not None:
            assert self.lives(), f"{self.name} ended:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, f"{self.name} did not answer within {START_S} s:\n{self.log()[-2000:]}"
            time.sleep(0.5)
        return self

    def lives(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        # Docker does not know the container while another one takes its place.
        inspect = ("docker", "inspect", "--format", "{{.State.Running}}", self.container)
        return subprocess.run(inspect, capture_output=True, text=True, check=False).stdout.strip() == "true"

    def log(self) -> str:
        if self._process is not None:
            return (self.site.folder / f"{self.name}.log").read_text(errors="replace")
        found = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True, check=False)
        return found.stdout + found.stderr

    def keep_log(self) -> None:
        if not self.site.python:
            (self.site.folder / f"{self.name}.log").write_text(self.log())
            subprocess.run(["docker", "rm", "--force", self.container], capture_output=True, check=False)

    def kill(self) -> None:
        """kill -9, all of its processes at once."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        else:
            subprocess.run(["docker", "kill", self.container], capture_output=True, check=False)

    def metrics(self) -> dict[str, float]:
        """Values of the connector's series."""
        return series_of(self.url)

    def value(self, name: str, label: str) -> float:
        """Value of one of vLLM's own series."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        (line,) = [line for line in lines if line.startswith(name) and label in line]
        return float(line.rpartition(" ")[2])


def page_of(url: str) -> str:
    """An engine's /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        text: str = reply.read().decode()
    return text


def series_of(url: str) -> dict[str, float]:
    """Values of an engine's `pd_kv` series, by name and their own label."""
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(pd_kv_\w+)\{(.*)\} (\S+)$", page_of(url), re.MULTILINE):
        own = [part for part in labels.split(",") if not part.startswith(("engine=", "model_name="))]
        found[" ".join([name, *own])] = float(value)
    return found


class Addressed(Protocol):
    """Whoever can be asked."""

    url: str


class Answer:
    """What an engine answered: the output's tokens, why it ended, and what it says of the KV."""

    def __init__(self, choice: dict[str, Any], pd: dict[str, Any]) -> None:
        self.choice = choice
        self.tokens: list[int] = choice["token_ids"]
        self.finish = choice["finish_reason"]
        self.stop_reason = choice.get("stop_reason")
        self.pd = pd


def ask(
    engine: Addressed, prompt: list[int], pd: dict[str, Any] | None = None, *, stream: bool = False, **fields: Any
) -> Answer:
    """A greedy completion."""
    timeout = fields.pop("timeout", 120)
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    body |= {"return_token_ids": True, "stream": stream, **fields}
    if pd is not None:
        body["kv_transfer_params"] = {"pd": pd}
    request = urllib.request.Request(
        f"{engine.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        data = reply.read()
    if not stream:
        found = json.loads(data)
        return Answer(found["choices"][0], (found.get("kv_transfer_params") or {}).get("pd", {}))
    events = [json.loads(event) for event in re.findall(rb"^data: (\{.*\})$", data, re.MULTILINE)]
    choices = [choice for event in events for choice in event["choices"]]
    tokens = [token for choice in choices for token in choice["token_ids"] or []]
    return Answer({**choices[-1], "token_ids": tokens}, {})


def call(engine: Addressed, path: str, **fields: Any) -> Any:
    """The answer of any endpoint that takes and gives JSON."""
    body = json.dumps({"model": "tiny", **fields}).encode()
    request = urllib.request.Request(f"{engine.url}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.loads(reply.read())


class Later:
    """Something that goes on in a thread; `result` waits for it, and raises what it raised."""

    def __init__(self, do: Callable[..., Any], *args: Any, **fields: Any) -> None:
        self._box: list[Any] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(do, args, fields), daemon=True)
        self._thread.start()

    def _run(self, do: Callable[..., Any], args: Any, fields: Any) -> None:
        try:
            self._box.append(do(*args, **fields))
        except Exception as error:  # noqa: BLE001  raised again in `result`
            self._error = error

    def result(self, timeout: float = 180) -> Any:
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return self._box[0]
