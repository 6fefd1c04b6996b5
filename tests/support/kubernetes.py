"""A small API server over HTTPS: objects of a few kinds, lists, watches, bearer tokens, versions that are forgotten."""

import asyncio
import contextlib
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pd_proxy.settings import Settings

Thing = dict[str, Any]
SLICES = "/apis/discovery.k8s.io/v1/namespaces/here/endpointslices"
PODS = "/api/v1/namespaces/here/pods"


def certificate(folder: Path, name: str = "server") -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key; skips where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return cert, key


def account(folder: Path, token: str, authority: Path) -> Path:
    """A pod's folder of its account, as the kubelet makes it."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token + "\n")
    (folder / "namespace").write_text("here")
    (folder / "ca.crt").write_bytes(authority.read_bytes())
    return folder


@dataclass(eq=False)
class ApiServer:
    """Answers lists and watches of one namespace; `token` is the only one that it accepts."""

    token: str = "first"
    port: int = 0
    objects: dict[str, dict[str, Thing]] = field(default_factory=lambda: {SLICES: {}, PODS: {}})
    events: list[tuple[int, str, str, Thing]] = field(default_factory=list)
    version: int = 100
    oldest: int = 0
    says_gone_late: bool = True
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _era: int = 0

    async def put(self, kind: str, thing: Thing) -> None:
        known = thing["metadata"]["name"] in self.objects[kind]
        await self._happen("MODIFIED" if known else "ADDED", kind, thing)
        self.objects[kind][thing["metadata"]["name"]] = thing

    async def delete(self, kind: str, name: str) -> None:
        await self._happen("DELETED", kind, self.objects[kind].pop(name))

    async def hang_up(self) -> None:
        """End every watch."""
        async with self._news:
            self._era += 1
            self._news.notify_all()

    async def forget(self) -> None:
        """Forget the history: watches that begin before now are refused."""
        self.version += 1
        self.oldest = self.version
        self.events.clear()
        await self.hang_up()

    def asked(self, kind: str, *, watch: bool) -> int:
        """How often a kind was listed or watched with success."""
        what = "watch" if watch else "list"
        return sum(1 for path, how, status in self.requests if (path, how, status) == (kind, what, 200))

    async def _happen(self, type_: str, kind: str, thing: Thing) -> None:
        async with self._news:
            self.version += 1
            thing["metadata"]["resourceVersion"] = str(self.version)
            self.events.append((self.version, type_, kind, json.loads(json.dumps(thing))))
            self._news.notify_all()

    @contextlib.asynccontextmanager
    async def running(self, cert: Path, key: Path) -> AsyncIterator["ApiServer"]:
        """Serve on `port`, or a free one."""
        app = web.Application()
        for kind in self.objects:
            app.router.add_get(kind, self._answer)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await self.hang_up()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        how = "watch" if "watch" in request.query else "list"
        status = 200 if request.headers.get("Authorization") == f"Bearer {self.token}" else 401
        if status == 200 and how == "watch" and not self.says_gone_late and self._too_old(request):
            status = 410
        self.requests.append((request.path, how, status))
        if status != 200:
            return web.json_response({"kind": "Status", "code": status, "message": "no"}, status=status)
        return await self._watch(request) if how == "watch" else self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        items = [thing for thing in self.objects[request.path].values() if _selected(thing, request)]
        return web.json_response({"kind": "List", "metadata": {"resourceVersion": str(self.version)}, "items": items})

    def _too_old(self, request: web.Request) -> bool:
        return int(request.query["resourceVersion"]) < self.oldest

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if self._too_old(request):
            await _event(response, "ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
            return response
        seen, era = int(request.query["resourceVersion"]), self._era
        await _event(response, "BOOKMARK", {"metadata": {"resourceVersion": str(seen)}})
        while era == self._era:
            for version, type_, kind, thing in [event for event in self.events if event[0] > seen]:
                seen = version
                if kind == request.path and _selected(thing, request):
                    await _event(response, type_, thing)
            async with self._news:
                if era == self._era and not any(event[0] > seen for event in self.events):
                    await self._news.wait()
        return response


async def _event(response: web.StreamResponse, type_: str, thing: Thing) -> None:
    await response.write(json.dumps({"type": type_, "object": thing}).encode() + b"\n")


def _selected(thing: Thing, request: web.Request) -> bool:
    labels = thing["metadata"].get("labels", {})
    for part in filter(None, request.query.get("labelSelector", "").split(",")):
        name, equals, value = part.partition("=")
        if name not in labels or (equals and labels[name] != value):
            return False
    return True


def settings_of(server: ApiServer, folder: Path, **fields: Any) -> dict[str, Any]:
    """The proxy's settings that lead to this server."""
    own: dict[str, Any] = {
        "discovery": "kubernetes",
        "kubernetes_service_host": "127.0.0.1",
        "kubernetes_service_port": server.port,
        "service_account_dir": str(folder),
        **fields,
    }
    assert set(own) <= set(Settings.__struct_fields__)
    return own
