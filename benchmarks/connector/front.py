# ruff: noqa: INP001, S310 - scripts, not a package; the addresses are their own
"""Two proxies in front of the same engines: one uses them as prefill and decode, the other uses each as a plain one, in turn.

Asked in turn within one run, they show what a client of the product waits for, and what plain vLLM behind the same proxy would have cost.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import zmq
from engines import ROOT, SERVED, Pair

from pd_contracts.free_ports import free_ports
from pd_contracts.names import Connector
from pd_contracts.ping import Ping, PingType, sign_ping

KEY = "a-key-of-this-benchmark-and-no-other"
PING_S = 1.0
START_S = 60
SOURCES = ("services/proxy/src", "contracts/src")
# Weights of no meaning cannot show whether KV arrives, and nothing but the measured requests may run.
SETTINGS = {"CANARY": "off", "PING_KEY": KEY, "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING"}


@dataclass
class Front:
    """The proxies, and the thread that announces the engines to them. `vllm` is the version that it announces."""

    pair: Pair
    vllm: str
    _ports: dict[str, tuple[int, int]] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def _url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self._ports[kind][0]}"

    def start(self) -> dict[str, str]:
        """The addresses of both, `disagg` and `plain`, when they serve."""
        for kind in ("disagg", "plain"):
            http, pings = free_ports(2)
            self._ports[kind] = (http, pings)
            paths = [*(str(ROOT / source) for source in SOURCES), os.environ.get("PYTHONPATH", "")]
            own = {"HTTP_PROXY_PORT": str(http), "PROXY_PORT": str(pings), **SETTINGS}
            own["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            with (self.pair.folder / f"proxy-{kind}.log").open("wb") as log:
                command = [sys.executable, "-m", "pd_proxy"]
                self._running.append(
                    subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT)
                )
        threading.Thread(target=self._announce, daemon=True).start()
        self._wait()
        return {kind: self._url(kind) for kind in self._ports}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        for kind, process in zip(self._ports, self._running, strict=True):
            while not self._serves(kind):
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self.pair.folder / f"proxy-{kind}.log").read_text(errors="replace")
                    sys.exit(f"the proxy `{kind}` does not serve; the end of its log:\n{log[-2000:]}")
                time.sleep(0.2)

    def _serves(self, kind: str) -> bool:
        body = json.dumps({"model": SERVED, "prompt": [20, 21, 22], "max_tokens": 2}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url(kind)}/v1/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _announce(self) -> None:
        roles = {
            "disagg": ((PingType.PREFILL, 0), (PingType.DECODE, 1)),
            "plain": ((PingType.COMBINED, 0), (PingType.COMBINED, 1)),
        }
        context = zmq.Context()
        sockets = []
        for kind, announced in roles.items():
            for letter, index in announced:
                socket = context.socket(zmq.DEALER)
                socket.identity = self.pair.kv(index).encode()
                socket.linger = 0
                socket.connect(f"tcp://127.0.0.1:{self._ports[kind][1]}")
                sockets.append((socket, self._ping(letter, index)))
        while not self._over.wait(PING_S):
            for socket, ping in sockets:
                socket.send(sign_ping(ping, KEY, time.time()))
        context.destroy(linger=0)

    def _ping(self, letter: PingType, index: int) -> Ping:
        return Ping(
            type=letter,
            http_address=self.pair.url(index).removeprefix("http://"),
            zmq_address=self.pair.kv(index),
            connector=None if letter is PingType.COMBINED else Connector.P2P,
            boot_id="1",
            model=SERVED,
            engine="vllm",
            version=self.vllm,
        )

    def stop(self) -> None:
        self._over.set()
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(30)


def served_version(pair: Pair) -> str:
    """What vLLM calls itself."""
    with urllib.request.urlopen(f"{pair.url(0)}/version", timeout=10) as reply:
        return str(json.load(reply)["version"])
