"""HTTP to the proxy and to engines: short requests with the standard library, past any proxy of the environment."""

import http.client
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pd_contracts import sse
from pd_contracts.stats import ProxyStats

TIMEOUT_S = 5.0


class ClientError(RuntimeError):
    """No usable answer; the message says what came instead."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. `elapsed_s` is from send to last byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    elapsed_s: float

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ClientError: if it is none.
        """
        try:
            return msgspec.json.decode(self.body)
        except msgspec.MsgspecError as error:
            msg = f"status {self.status} with a body that is no JSON: {self.body[:80]!r}"
            raise ClientError(msg) from error


def get(url: str, timeout_s: float = TIMEOUT_S) -> Reply:
    """GET; any status is an answer.

    Raises:
        ClientError: if none came.
    """
    return _request("GET", url, None, {}, timeout_s)


def post(url: str, body: Any, headers: Mapping[str, str], timeout_s: float) -> Reply:
    """POST JSON.

    Raises:
        ClientError: if no answer came.
    """
    return _request("POST", url, msgspec.json.encode(body), headers, timeout_s)


def _request(method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
    parts = urlsplit(url)
    begin = time.monotonic()
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)) as connection:
        try:
            connection.request(
                method, parts.path or "/", body, {"Content-Type": "application/json", "Connection": "close", **headers}
            )
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            msg = f"{url}: {error or type(error).__name__}"
            raise ClientError(msg) from error
    return Reply(
        status=answer.status,
        headers={key.lower(): value for key, value in answer.getheaders()},
        body=data,
        elapsed_s=time.monotonic() - begin,
    )


def proxy_stats(url: str) -> ProxyStats | None:
    """What the proxy at `url` says of its engines; None if it does not answer (it may still be starting)."""
    try:
        reply = get(f"{url}/stats", timeout_s=2.0)
        return msgspec.json.decode(reply.body, type=ProxyStats) if reply.status == 200 else None
    except (ClientError, msgspec.MsgspecError):
        return None


def served_models(url: str) -> list[str]:
    """Names of the models that the proxy offers.

    Raises:
        ClientError: if it offers none or does not answer.
    """
    reply = get(f"{url}/v1/models")
    try:
        names = [str(model["id"]) for model in reply.json()["data"]]
    except (KeyError, TypeError) as error:
        msg = f"{url}/v1/models answered {reply.status} without a list of models"
        raise ClientError(msg) from error
    if not names:
        msg = f"{url}/v1/models is empty: no engine has joined"
        raise ClientError(msg)
    return names


def events(body: bytes) -> Iterator[sse.Event | sse.Comment]:
    """Events and comments of a whole stream."""
    decoder = sse.Decoder()
    yield from decoder.feed(body)
    if decoder.incomplete:
        msg = "the stream was cut in the middle of an event"
        raise ClientError(msg)
