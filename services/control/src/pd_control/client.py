"""HTTP to the proxy and to engines, with errors that pdctl shows as a sentence."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from pd_contracts import sse, stats
from pd_contracts.http_call import CallError, Reply, call
from pd_contracts.names import SIMULATED_ENGINE
from pd_contracts.stats import ProxyStats

TIMEOUT_S = 5.0
SIMULATED: Final = "SIMULATED: these engines only behave like vLLM; these times say nothing about a GPU"


class ClientError(RuntimeError):
    """No usable answer; the message says what came instead."""


def get(url: str, timeout_s: float = TIMEOUT_S) -> Reply:
    """GET; any status is an answer.

    Raises:
        ClientError: if none came.
    """
    return _call(url, "GET", None, {}, timeout_s)


def post(url: str, body: Any, headers: Mapping[str, str], timeout_s: float) -> Reply:
    """POST JSON.

    Raises:
        ClientError: if no answer came.
    """
    return _call(url, "POST", msgspec.json.encode(body), headers, timeout_s)


def _call(url: str, method: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
    try:
        return call(url, method, body, headers, timeout_s=timeout_s)
    except CallError as error:
        msg = f"{url}: {error}"
        raise ClientError(msg) from error


def json_of(reply: Reply) -> Any:
    """The body as JSON.

    Raises:
        ClientError: if it is not JSON.
    """
    try:
        return reply.json()
    except CallError as error:
        raise ClientError(str(error)) from error


def proxy_stats(url: str) -> ProxyStats | None:
    """The proxy's statistics with its engines; None if it does not answer (it may still be starting)."""
    return stats.ask(url, timeout_s=2.0)


def served_models(url: str) -> list[str]:
    """Names of the models that the proxy offers.

    Raises:
        ClientError: if it offers none or does not answer.
    """
    reply = get(f"{url}/v1/models")
    try:
        names = [str(model["id"]) for model in json_of(reply)["data"]]
    except (KeyError, TypeError) as error:
        msg = f"{url}/v1/models answered {reply.status} without a list of models"
        raise ClientError(msg) from error
    if not names:
        msg = f"{url}/v1/models is empty: no engine has joined"
        raise ClientError(msg)
    return names


def simulated(url: str) -> bool:
    """Whether an engine behind `url`, the proxy's address or an engine's own, says that it is simulated."""
    told = proxy_stats(url)
    if told is not None and any(instance.engine == SIMULATED_ENGINE for instance in told.instances):
        return True
    try:
        models = json_of(get(f"{url}/v1/models"))["data"]
        return any(model.get("owned_by") == SIMULATED_ENGINE for model in models)
    except (ClientError, KeyError, TypeError, AttributeError):
        return False  # nothing answers, or another program does: unknown


def events(body: bytes) -> Iterator[sse.Event | sse.Comment]:
    """Events and comments of a whole stream."""
    decoder = sse.Decoder()
    yield from decoder.feed(body)
    if decoder.incomplete:
        msg = "the stream was cut in the middle of an event"
        raise ClientError(msg)
