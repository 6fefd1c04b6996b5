"""The clients' routes."""

from collections.abc import AsyncIterator
from time import monotonic

import msgspec
from quart import Blueprint, Response, request

from pd_contracts.names import Role
from pd_contracts.stats import InstanceStats, PairStats, ProxyStats
from pd_proxy import __version__
from pd_proxy.api.body import body_of
from pd_proxy.api.deployment import describe
from pd_proxy.background.canary import pairs
from pd_proxy.context import Context
from pd_proxy.engines.pairing import Pair, is_ready
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import NoInstanceError, NoSuchResponseError, ProxyError, UnknownModelError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.request.serving import (
    EVENTS,
    JSON,
    answer,
    begin,
    check_authorization,
    last_events,
    stream_headers,
    whole_headers,
)
from pd_proxy.request.trace import Trace, attach
from pd_proxy.supervisor import Supervisor
from pd_proxy.upstream.answers import Stream
from pd_proxy.upstream.models import SERVICE


class Generating:
    """Handlers of the routes that generate tokens, bound to one process's context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("generating", __name__)
        blueprint.before_request(self._check_key)
        for endpoint in Endpoint:
            blueprint.add_url_rule(
                endpoint.value, endpoint.name.lower(), self.generate, methods=["POST"], provide_automatic_options=False
            )
        stored = f"{Endpoint.RESPONSES.value}/<response_id>"
        blueprint.add_url_rule(stored, "stored", self.stored_response, methods=["GET", "DELETE"])
        blueprint.add_url_rule(f"{stored}/cancel", "cancel", self.stored_response, methods=["POST"])
        return blueprint

    async def _check_key(self) -> None:
        check_key(self._context)

    async def generate(self) -> Response:
        """Serve a completion, a chat completion or a response."""
        trace = begin(self._context, Endpoint(request.path), request.headers)
        attach(request, trace)
        body = await body_of(request, self._context)
        # If the client leaves now, Quart may never iterate the stream; the connection closes it in any case.
        found = await answer(self._context, trace, request.headers, body)
        if isinstance(found, Stream):
            return Response(self._events(found, trace), content_type=EVENTS, headers=stream_headers(trace))
        return Response(found.body, content_type=JSON, headers=whole_headers(trace))

    async def _events(self, stream: Stream, trace: Trace) -> AsyncIterator[bytes]:
        while True:
            try:
                while block := await stream.next():
                    yield block
                break
            except ProxyError as error:
                successor = await stream.resume(error)
                if successor is None:
                    trace.fail(error)
                    yield stream.error_event(error)
                    return
            stream = trace.answer = successor
        yield last_events(stream, trace)

    async def stored_response(self, response_id: str) -> Response:  # noqa: ARG002  there is none under any id
        """Refuse to return a stored response.

        Raises:
            NoSuchResponseError: always, because the proxy lets engines store none.
        """
        raise NoSuchResponseError("responses are not stored here: send the earlier turns in `input`")


class Showing:
    """Handlers of the routes that describe the proxy and its engines, bound to the context of the process that judges engines."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("showing", __name__)
        for path, handler in {
            "/v1/models": self.models,
            "/health": self.health,
            "/ping": self.health,
            "/load": self.load,
            "/ready": self.ready,
            "/stats": self.stats,
            "/metrics": self.metrics,
            "/deployment": self.deployment,
        }.items():
            blueprint.add_url_rule(path, path.strip("/"), handler, methods=["GET"])
        blueprint.add_url_rule("/v1/models/<path:model>", "model", self.model, methods=["GET"])
        return blueprint

    async def models(self) -> Response:
        """Every model of every ready engine, as the engines describe them."""
        check_key(self._context)
        return _json({"object": "list", "data": list(self._models().values())})

    async def model(self, model: str) -> Response:
        check_key(self._context)
        found = self._models().get(model)
        if found is None:
            raise UnknownModelError(f"The model `{model[:200]}` does not exist.")
        return _json(found)

    def _models(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for instance in self._context.registry.view():
            if instance.state is State.READY:
                found |= {model["id"]: model for model in self._context.registry.models(instance)}
        if not found:
            raise NoInstanceError("no engine is ready")
        return found

    async def health(self) -> Response:
        """200 while the proxy and its background loops run."""
        alive = self._context.alive
        status = "ok" if alive else "a background loop has died"
        return _json({"status": status, "service": SERVICE}, 200 if alive else 500)

    async def load(self) -> Response:
        """Requests in flight, in the form of an engine with --enable-server-load-tracking."""
        return _json({"server_load": self._context.metrics.at_once()})

    async def ready(self) -> Response:
        """200 while a request could be served."""
        ready = self._is_ready()
        return _json({"ready": ready, "instances": self._states()}, 200 if ready else 503)

    async def stats(self) -> Response:
        """`pd_contracts.stats.ProxyStats`."""
        return _json(self._stats())

    async def deployment(self) -> Response:
        """`pd_contracts.deployment.DeploymentDocument`: what is deployed, for the records of a measurement."""
        settings = self._context.settings
        shown = self._context.shown()
        return _json(describe(settings.deployment, shown, ready=self._is_ready(), settings=settings.serving()))

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._context.metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def _is_ready(self) -> bool:
        return not self._context.stopping and is_ready(self._context.registry.view(), self._context.trust)

    def _states(self) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {role.value: {} for role in Role}
        for instance in self._context.shown():
            of_role = counts[instance.role.value]
            of_role[instance.state.value] = of_role.get(instance.state.value, 0) + 1
        return counts

    def _stats(self) -> ProxyStats:
        numbers, now = self._context.metrics.numbers(), monotonic()
        return ProxyStats(
            ready=self._is_ready(),
            instances=[self._instance(instance, now) for instance in self._context.shown()],
            version=__version__,
            policy=self._context.settings.policy,
            in_flight=numbers.in_flight,
            requests=numbers.total,
            failures=numbers.failures,
            rejected_pings=numbers.rejected_pings,
            drained=numbers.drains,
            retries=numbers.retries,
            handed_off=numbers.handed_off,
            migrations=numbers.migrations,
            workers=self._context.settings.proxy_workers,
            worker_restarts=numbers.worker_restarts,
            pairs=[self._pair(pair) for pair in pairs(self._context)],
            uptime_s=round(now - self._context.started, 3),
            api_keys=self._context.keys.fault(),
            routing=self._context.router.stats(self._ready_engines(), now) if self._context.router else None,
        )

    def _ready_engines(self) -> list[Instance]:
        return [instance for instance in self._context.registry.view() if instance.state is State.READY]

    def _pair(self, pair: Pair) -> PairStats:
        verdict, reason = self._context.trust.says(pair.prefill, pair.decode)
        return PairStats(
            prefill=pair.prefill.name,
            decode=pair.decode.name,
            canary=verdict,
            reason=reason,
            transport=self._context.trust.transport(pair.prefill, pair.decode),
        )

    def _instance(self, instance: Instance, now: float) -> InstanceStats:
        flights = self._context.flights
        requests, failures = flights.counts(instance.http_address)
        return InstanceStats(
            name=instance.name,
            role=instance.role,
            state=instance.state.value,
            connector=instance.connector,
            model=instance.model or next(iter(instance.models), ""),
            engine=instance.engine,
            version=instance.version,
            boot_id=instance.boot_id,
            reason=instance.reason,
            in_flight=flights.load(instance),
            requests=requests,
            failures=failures,
            kv_bytes=self._context.budget.claimed(instance),
            last_ping_s=round(now - self._context.registry.last_ping(instance), 3),
        )


def check_key(context: Context) -> None:
    """As `check_authorization`, for the current request."""
    check_authorization(context, request.path, request.headers)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, content_type=JSON)
