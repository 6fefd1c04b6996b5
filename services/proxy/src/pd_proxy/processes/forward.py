"""Requests about the whole proxy, which a worker passes to its parent."""

import asyncio
from typing import Any, Final

from quart import Blueprint, Response, request

from pd_proxy.api.app import Proxy
from pd_proxy.errors import HttpError, ShuttingDownError
from pd_proxy.processes.channel import Answered, Forwarded
from pd_proxy.processes.worker_context import Tell

PATHS: Final = (
    "/v1/models",
    "/v1/models/<path:rest>",
    "/health",
    "/ping",
    "/load",
    "/ready",
    "/stats",
    "/metrics",
    "/admitted",
    "/deployment",
    "/admin/<path:rest>",
)
# The headers of requests and answers that these routes use.
_ASKED: Final = ("Authorization",)
_SAID: Final = ("Content-Type", "Retry-After", "Allow")


# The parent answers from memory, except for operators' requests; it does not answer if it has stalled.
ANSWER_S: Final = 10.0


class Forward:
    """The worker's side: asks the parent over the channel."""

    def __init__(self, tell: Tell, give_up_s: float) -> None:
        """`tell` sends a message to the parent; operators' requests may take up to `give_up_s` seconds."""
        self._tell = tell
        self._give_up_s = give_up_s
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._last = 0

    def blueprint(self) -> Blueprint:
        """All routes; the parent decides which methods they have."""
        blueprint = Blueprint("forward", __name__)
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        for path in PATHS:
            blueprint.add_url_rule(path, path.strip("/"), self.forward, methods=methods)
        return blueprint

    async def forward(self, rest: str = "") -> Response:  # noqa: ARG002  the whole path goes on
        """Pass the request to the parent and return its answer."""
        self._last += 1
        number = self._last
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._tell(
            Forwarded(
                number=number,
                method=request.method,
                path=request.path,
                query=request.query_string,
                headers={name: request.headers[name] for name in _ASKED if name in request.headers},
            )
        )
        patience_s = self._give_up_s if request.path.startswith("/admin/") else ANSWER_S
        try:
            async with asyncio.timeout(patience_s):
                said = await answer
        except TimeoutError:
            raise HttpError(504, f"the proxy's parent did not answer within {patience_s:g} s") from None
        finally:
            del self._waiting[number]
        return Response(said.body, said.status, headers=said.headers)

    def answered(self, said: Answered) -> None:
        if said.number in self._waiting and not self._waiting[said.number].done():
            self._waiting[said.number].set_result(said)

    def abandon(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ShuttingDownError("the proxy is shutting down"))


async def answer(app: Proxy, asked: Forwarded) -> Answered:
    """The parent's side: let the application serve the request, as a server would."""
    said: dict[str, Any] = {}
    parts: list[bytes] = []
    body: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]
    complete = asyncio.Event()

    async def receive() -> Any:
        if body:
            return body.pop()
        # The worker watches the client; here it leaves once it has its answer, which Quart 0.23 waits for.
        await complete.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            said.update(event)
        elif event["type"] == "http.response.body":
            parts.append(event.get("body", b""))
            if not event.get("more_body", False):
                complete.set()

    await app(_scope(asked), receive, send)  # type: ignore[arg-type]  # the dict is hypercorn's HTTPScope
    found = {name.decode("latin-1").title(): value.decode("latin-1") for name, value in said["headers"]}
    headers = {name: found[name] for name in _SAID if name in found}
    return Answered(number=asked.number, status=said["status"], headers=headers, body=b"".join(parts))


def _scope(asked: Forwarded) -> dict[str, Any]:
    headers = {"host": "proxy", **asked.headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "query_string": asked.query,
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": {},
        "extensions": {},
    }
