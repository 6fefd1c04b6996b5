"""Requests to the server and the monitor outside the measured load: readiness, models, power recording, profiling.

Plain blocking HTTP of the standard library; under Locust gevent makes it cooperative.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from pd_contracts import stats
from pd_contracts.deployment import DeploymentDocument
from pd_contracts.http_call import CallError, Reply, answering, call
from pd_contracts.names import SIMULATED_ENGINE
from pd_contracts.stats import ProxyStats
from pd_loadgen.client.access import Access

POLL_S: Final = 0.25
REQUEST_TIMEOUT_S: Final = 5.0
PROFILE_TIMEOUT_S: Final = 600.0
# Requests to the monitor have no headers, and trust the system's certificates.
OPEN: Final = Access()
MODELS_PATH: Final = "/v1/models"

T = TypeVar("T")


class ServerError(OSError):
    """The server or the monitor cannot be used; the message is one sentence."""


class Model(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[Model]


class _Board(msgspec.Struct):
    index: int
    uuid: str = ""


class _Recording(msgspec.Struct):
    id: str


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
        status = _ask(url, "/ready", access=access).status
        if status in (404, 405):
            status = _ask(url, ready_path, access=access).status
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


def wait_for_boards(
    monitor: str,
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, int]:
    """The monitor's GPUs, as soon as it answers: where everything is started at once, it may be the last.

    Raises:
        ServerError: if it does not within `timeout` seconds.
    """
    deadline = clock() + timeout
    while True:
        try:
            return boards(monitor)
        except ServerError:
            if clock() >= deadline:
                raise
            sleep(POLL_S)


def boards(monitor: str) -> dict[str, int]:
    """The monitor's GPUs: number by UUID.

    Raises:
        ServerError: if it does not answer.
    """
    try:
        reply = _ask(monitor, "/gpus")
        if reply.status == 200:
            return {board.uuid: board.index for board in msgspec.json.decode(reply.body, type=list[_Board])}
    except (CallError, msgspec.MsgspecError) as error:
        msg = f"the monitor at {monitor} cannot be used: {error}"
        raise ServerError(msg) from error
    msg = f"the monitor at {monitor} does not list its GPUs: status {reply.status}"
    raise ServerError(msg)


def simulated(url: str, access: Access = OPEN) -> bool:
    """Whether the server says that its engines are simulated."""
    document = deployment_document(url, access)
    if document is not None and document.instances:
        return document.simulated
    return any(is_simulator(model) for model in _models(url, access) or [])


def is_simulator(model: Model) -> bool:
    """True if the server itself says that it simulates."""
    return model.owned_by == SIMULATED_ENGINE


def start_recording(monitor: str, name: str, roles: dict[str, str]) -> str:
    """Tell the monitor to record power; returns the recording's id.

    Raises:
        ServerError: if it does not.
    """
    body: dict[str, Any] = {"name": name, **({"roles": roles} if roles else {})}
    try:
        reply = _ask(monitor, "/recordings", "POST", msgspec.json.encode(body))
        if reply.status == 201:
            return msgspec.json.decode(reply.body, type=_Recording).id
    except (CallError, msgspec.MsgspecError) as error:
        msg = f"the monitor at {monitor} cannot be used: {error}"
        raise ServerError(msg) from error
    said = reply.body[:200].decode("utf-8", "replace")
    msg = f"the monitor at {monitor} does not record: status {reply.status}, {said}"
    raise ServerError(msg)


def end_recording(monitor: str, recording: str, path: Path) -> None:
    """End a recording and write it to `path`, whole or not at all.

    Raises:
        ServerError: if the monitor does not hand it over.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with (
            answering(_at(monitor, f"/recordings/{recording}"), "DELETE", timeout_s=60.0) as response,
            temporary.open("wb") as file,
        ):
            while data := response.read(64 * 1024):
                file.write(data)
            status = response.status
    except (CallError, OSError) as error:
        temporary.unlink(missing_ok=True)
        msg = f"the monitor at {monitor} did not hand over its recording: {error}"
        raise ServerError(msg) from error
    if status != 200:
        temporary.unlink()
        msg = f"the monitor at {monitor} did not hand over its recording: status {status}"
        raise ServerError(msg)
    temporary.replace(path)


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
        status = _ask(url, path, "POST", b"", access=access, timeout_s=timeout).status
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
        reply = _ask(url, path, access=access)
        return msgspec.json.decode(reply.body, type=type_) if reply.status == 200 else None
    except (CallError, msgspec.MsgspecError):
        return None  # a server without the page, or with another meaning of it


def _ask(
    url: str,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    *,
    access: Access = OPEN,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Reply:
    return call(_at(url, path), method, body, access.headers, timeout_s=timeout_s, context=access.context)


def _at(url: str, path: str) -> str:
    return url.rstrip("/") + path
