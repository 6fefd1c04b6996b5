"""The operators' routes, which need ADMIN_KEY as a bearer token; if no key is set, all calls are refused."""

import asyncio

import msgspec
from quart import Blueprint, Response, request

from pd_proxy.access import allowed, digests
from pd_proxy.api.membership import idle, named, wait_s
from pd_proxy.api.passthrough import everywhere
from pd_proxy.background.canary import examine, pairs
from pd_proxy.errors import ForbiddenError, HttpError
from pd_proxy.supervisor import Supervisor


class Admin:
    """Handlers, bound to one proxy's context."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        """All routes; each needs the admin key."""
        blueprint = Blueprint("admin", __name__, url_prefix="/admin")
        blueprint.before_request(self._check_key)
        blueprint.add_url_rule("/canary", "canary", self.canary, methods=["POST"])
        for name in ("start_profile", "stop_profile"):
            blueprint.add_url_rule(f"/{name}", name, self.profile, methods=["POST"])
        blueprint.add_url_rule("/instances/<name>/drain", "drain", self.drain, methods=["POST", "DELETE"])
        return blueprint

    async def canary(self) -> Response:
        """Examine every pair of ready engines now."""
        examined = pairs(self._context)
        results = await asyncio.gather(*(examine(self._context, pair) for pair in examined))
        rows = [
            {
                "prefill": pair.prefill.name,
                "decode": pair.decode.name,
                "verdict": result.verdict,
                "reason": result.reason,
            }
            for pair, result in zip(examined, results, strict=True)
        ]
        return Response(msgspec.json.encode({"pairs": rows}), content_type="application/json")

    async def profile(self) -> Response:
        """Start or stop the profiler of every ready engine (vLLM needs a profiler configured for it)."""
        said = await everywhere(self._context, request.path.removeprefix("/admin"))
        ok = all(answer == "ok" for answer in said.values())
        return Response(msgspec.json.encode({"instances": said}), 200 if ok else 502, content_type="application/json")

    async def drain(self, name: str) -> Response:
        """POST: send an instance no new requests; its running ones may finish. DELETE: send it requests again."""
        context, patience = self._context, wait_s(request.args.get("wait_s", ""))
        found = named(context, name)
        if found is None:
            raise HttpError(404, "there is no such instance")
        context.noted(context.registry.drain(found, on=request.method == "POST"))
        await context.heard()
        busy = await idle(context, found, patience)
        now = context.registry.current(found) or found
        body = {"instance": now.name, "state": now.state, "in_flight": busy, "drained": not busy}
        return Response(msgspec.json.encode(body), content_type="application/json")

    async def _check_key(self) -> None:
        key = self._context.settings.admin_key
        if not key or not allowed(request.headers.get("Authorization", ""), digests([key.encode()])):
            raise ForbiddenError("this needs the admin key (ADMIN_KEY) as a bearer token")
