"""Requests to the server outside the measured load: readiness, models, deployment, profiling."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from pd_contracts import stats
from pd_contracts.deployment import DeploymentDocument
from pd_contracts.http_call import CallError
from pd_contracts.names import SIMULATED_ENGINE
from pd_contracts.stats import ProxyStats
from pd_loadgen.client.access import Access
from pd_loadgen.target.asking import OPEN, POLL_S, REQUEST_TIMEOUT_S, ServerError, ask

PROFILE_TIMEOUT_S: Final = 600.0
MODELS_PATH: Final = "/v1/models"

T = TypeVar("T")


class Model(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[Model]


def wait_ready(
    url: str,
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    *,
    access: Access = OPEN,
    ready_path: str = MODELS_PATH,
) -> None:
    """Wait until the server can serve: `/ready` says so or, where there is no such page, `ready_path` answers.

    Raises:
        ServerError: if it does not within `timeout` seconds.
    """
    deadline = clock() + timeout
    while (reason := not_ready(url, access, ready_path)) is not None:
        if clock() >= deadline:
            msg = f"{url} is not ready after {timeout:g} s: {reason}"
            raise ServerError(msg)
        sleep(POLL_S)


def not_ready(url: str, access: Access = OPEN, ready_path: str = MODELS_PATH) -> str | None:
    """Why the server cannot serve now; None if it can."""
    try:
        status = ask(url, "/ready", access=access).status
        if status in (404, 405):
            status = ask(url, ready_path, access=access).status
            return None if status == 200 else f"GET {ready_path} answers {status}"
    except CallError as error:
        return str(error)
    return None if status == 200 else f"GET /ready answers {status}"


def choose_model(url: str, wanted: str, access: Access = OPEN) -> Model:
    """The served model of that name, or the first one if none is wanted.

    Raises:
        ServerError: if it is not served; the sentence names those that are.
    """
    models = _models(url, access)
    if models is None and wanted:
        return Model(wanted)  # a server without the list may still serve it
    served = {model.id: model for model in models or []}
    if not served:
        msg = f"{url} lists no model: name one with --model"
        raise ServerError(msg)
    if wanted and wanted not in served:
        msg = f"{url} does not serve {wanted!r}, but {', '.join(served)}"
        raise ServerError(msg)
    return served[wanted] if wanted else next(iter(served.values()))


def proxy_stats(url: str, access: Access = OPEN) -> ProxyStats | None:
    """What our proxy says about the deployment; None from any other server."""
    return stats.ask(url.rstrip("/"), access.headers, context=access.context)


def deployment_document(url: str, access: Access = OPEN) -> DeploymentDocument | None:
    """What our proxy says is deployed; None from any other server."""
    return _get(url, "/deployment", DeploymentDocument, access)


def simulated(url: str, access: Access = OPEN) -> bool:
    """Whether the server says that its engines are simulated."""
    document = deployment_document(url, access)
    if document is not None and document.instances:
        return document.simulated
    return any(is_simulator(model) for model in _models(url, access) or [])


def is_simulator(model: Model) -> bool:
    """True if the server itself says that it simulates."""
    return model.owned_by == SIMULATED_ENGINE


def start_profile(url: str, access: Access = OPEN) -> None:
    """Have an engine start its profiler.

    Raises:
        ServerError: if it does not.
    """
    _profile(url, "/start_profile", REQUEST_TIMEOUT_S, access)


def stop_profile(url: str, access: Access = OPEN) -> None:
    """Have it stop, and write its trace, which takes it minutes.

    Raises:
        ServerError: if it does not.
    """
    _profile(url, "/stop_profile", PROFILE_TIMEOUT_S, access)


def _profile(url: str, path: str, timeout: float, access: Access) -> None:
    try:
        status = ask(url, path, "POST", b"", access=access, timeout_s=timeout).status
    except CallError as error:
        msg = f"{url} does not answer POST {path}: {error}"
        raise ServerError(msg) from error
    if status != 200:
        msg = f"{url} cannot profile: POST {path} answers {status} (vLLM needs --profiler-config)"
        raise ServerError(msg)


def _models(url: str, access: Access) -> list[Model] | None:
    models = _get(url, MODELS_PATH, _Models, access)
    return None if models is None else models.data


def _get(url: str, path: str, type_: type[T], access: Access) -> T | None:
    try:
        reply = ask(url, path, access=access)
        return msgspec.json.decode(reply.body, type=type_) if reply.status == 200 else None
    except (CallError, msgspec.MsgspecError):
        return None  # a server without the page, or with another meaning of it
