"""Probes of a running engine, as Docker's health check and the kubelet call them, and its draining before it is stopped.

Each call is a short process of its own, so what must be remembered lies in files in the temporary folder, written whole. The
engine may be vLLM or a simulated one. Only this host and the proxy are asked, over plain HTTP, each within seconds.
"""

import os
import ssl
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import psutil

from pd_contracts.address import own_address
from pd_contracts.http_call import CallError, Reply, call
from pd_contracts.proxies import addresses, entries, first_host
from pd_engine.settings import CheckSettings
from pd_engine.vitals import UNKNOWN, Answer, Seen, Standing, Watch, complaint, read_metrics, standing, watch

# Three requests must fit into the kubelet's time-out of a probe (10 s in the chart).
TIMEOUT_S: Final = 3.0
# The proxy may take this much longer than it was asked to wait.
SLACK_S: Final = 5.0
# vLLM keeps reporting a request as running if its client left while nothing else ran.
STILL_S: Final = 5.0
POLL_S: Final = 0.5

S = TypeVar("S", bound=msgspec.Struct)


class Checks:
    """One engine, seen from a process beside it."""

    def __init__(self, settings: CheckSettings, folder: Path | None = None, process: int = 1) -> None:
        """`process` is the engine's, 1 in a container; `folder` is where the files lie."""
        self._settings = settings
        self._folder = folder or Path(tempfile.gettempdir())
        self._process = process

    def health(self) -> str:
        """Why the engine does not answer; empty if it does."""
        try:
            status = self._ask_engine("/health").status
        except CallError as error:
            return str(error)
        return "" if status == 200 else f"status {status}"

    def admitted(self) -> str:
        """Why the proxy gives the engine no requests; empty if it does."""
        path = self._folder / "pd-engine-admitted.json"
        now = standing(_read(path, Standing), self._ask_proxy(), self._boot())
        _write(path, now)
        return "" if now.admitted else now.reason

    def alive(self) -> str:
        """Why the engine should be started again; empty if it works, or has nothing to do."""
        problem = self.health()
        if problem:
            return problem
        path = self._folder / "pd-engine-progress.json"
        answer = self._ask_proxy()
        suspect = answer is not None and answer.state == "suspect"
        now = time.monotonic()
        watched = watch(_read(path, Watch), self._look(suspect=suspect), now)
        _write(path, watched)
        return complaint(watched, now, self._settings.engine_stall_s)

    def drain(self) -> str:
        """Have the proxy send the engine no new requests, and wait until none runs there; returns the outcome as a sentence.

        It takes DRAIN_WAIT_S and a few seconds more at most, and never fails: an engine is stopped whether it could be drained or not.
        A proxy that is being stopped itself takes no connections, but still has streams: then the engine's own counters say when they
        have ended.
        """
        settings = self._settings
        if not settings.admin_key:
            return "not drained: ADMIN_KEY is not set"
        begun = time.monotonic()
        proxies = self._proxies()
        # At once: each waits for its own requests only.
        with ThreadPoolExecutor(max(1, len(proxies))) as pool:
            said = list(pool.map(self._drain_at, proxies))
        if all(said) and said:
            return "; ".join(said)
        self._wait_until_idle(begun + settings.drain_wait_s)
        return f"not drained: the proxy does not answer; what ran had {time.monotonic() - begun:.0f} s to end"

    def _drain_at(self, proxy: str) -> str:
        """A proxy's answer; empty if it does not answer."""
        settings = self._settings
        target = f"/admin/instances/{self._address()}/drain?wait_s={settings.drain_wait_s:g}"
        limit = settings.drain_wait_s + SLACK_S
        key = {"Authorization": f"Bearer {settings.admin_key}"}
        try:
            reply = call(proxy + target, "POST", None, key, timeout_s=limit, connect_timeout_s=TIMEOUT_S)
        except CallError:
            return ""
        return f"drain: status {reply.status}, {reply.body[:500].decode(errors='replace')}"

    def _wait_until_idle(self, deadline: float) -> None:
        """Return when nothing runs, when what seems to run makes no progress (its client is gone), or at the deadline."""
        kept: Watch | None = None
        while (now := time.monotonic()) < deadline:
            seen = self._look(suspect=False)
            kept = watch(kept, seen, now)
            if seen.running == 0 or now - kept.moved_at > STILL_S:
                return
            time.sleep(POLL_S)

    def _look(self, *, suspect: bool) -> Seen:
        try:
            reply = self._ask_engine("/metrics")
            text = reply.body.decode(errors="replace") if reply.status == 200 else ""
        except CallError:
            text = ""  # an engine that does not answer shows no progress
        return read_metrics(text, self._boot(), suspect=suspect)

    def _ask_engine(self, target: str) -> Reply:
        port, secure = self._settings.listen_http_port, bool(self._settings.engine_tls_cert_file)
        # Its own certificate need not be for 127.0.0.1, and nobody else can listen there.
        context = ssl._create_unverified_context() if secure else None  # noqa: S323, SLF001
        scheme = "https" if secure else "http"
        return call(f"{scheme}://127.0.0.1:{port}{target}", timeout_s=TIMEOUT_S, context=context)

    def _ask_proxy(self) -> Answer | None:
        """The proxies' verdict: of several, the one that refuses the engine, apart from those that do not know it yet."""
        with ThreadPoolExecutor(max(1, len(self._proxies()))) as pool:
            said = [answer for answer in pool.map(self._ask_one, self._proxies()) if answer is not None]
        known = [answer for answer in said if answer.state != UNKNOWN]
        return next(iter([*(one for one in known if not one.admitted), *known, *said]), None)

    def _ask_one(self, proxy: str) -> Answer | None:
        target = f"/admitted?http_address={self._address()}"
        try:
            reply = call(proxy + target, timeout_s=TIMEOUT_S)
            return msgspec.json.decode(reply.body, type=Answer) if reply.status in (200, 503) else None
        except (CallError, msgspec.MsgspecError, UnicodeDecodeError):
            return None  # no proxy, or a 503 of something between us and it

    def _proxies(self) -> list[str]:
        """URLs of all of them; by name if it does not resolve, which is then what cannot be reached."""
        settings = self._settings
        hosts = [address.rpartition(":")[0] for address in addresses(settings.proxy_host, settings.proxy_port)]
        hosts = hosts or [host for host, _ in entries(settings.proxy_host, settings.proxy_port)]
        return [f"http://{host}:{settings.http_proxy_port}" for host in dict.fromkeys(hosts)]

    def _address(self) -> str:
        settings = self._settings
        host = settings.vllm_host_ip or own_address(*first_host(settings.proxy_host, settings.proxy_port))
        return f"{host}:{settings.listen_http_port}"

    def _boot(self) -> str:
        """When the engine's process was started, in seconds since the machine was: /tmp outlives a container in its pod."""
        try:
            return f"{psutil.Process(self._process).create_time() - psutil.boot_time():.2f}"
        except psutil.Error:
            return ""  # without a start time all processes count as one


def _read(path: Path, type_: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # nothing was kept yet, or by another version


def _write(path: Path, value: msgspec.Struct) -> None:
    """Replace the file at once: a probe that is killed half-way leaves the old one."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_bytes(msgspec.json.encode(value))
        new.replace(path)
    except OSError as error:
        # A full disk must not end a working engine; without the file every check is the first one.
        sys.stderr.write(f"pd-engine: {path}: {error.strerror}\n")


def run(arguments: list[str], settings: CheckSettings) -> int:
    """`probe`, `probe --admitted`, `probe --alive` or `drain`; a probe's exit status is 1 with the reason on stderr."""
    checks = Checks(settings)
    if arguments == ["drain"]:
        sys.stderr.write(f"pd-engine: {checks.drain()}\n")
        return 0
    reason = {"": checks.health, "--admitted": checks.admitted, "--alive": checks.alive}["".join(arguments[1:])]()
    if reason:
        sys.stderr.write(reason + "\n")
    return int(bool(reason))


COMMANDS: Final = (["probe"], ["probe", "--admitted"], ["probe", "--alive"], ["drain"])
