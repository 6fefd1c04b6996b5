"""Requests to the monitor: its GPUs, and the recording of their power."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.http_call import CallError, answering
from pd_loadgen.target.asking import POLL_S, ServerError, ask, at

# A monitor that started before the engines finds simulated boards, or a driver, only when it looks again.
NO_BOARDS_S: Final = 15.0


class _Board(msgspec.Struct):
    index: int
    uuid: str = ""


class _Recording(msgspec.Struct):
    id: str


def wait_for_boards(
    monitor: str,
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, int]:
    """The monitor's GPUs, as soon as it has some: where everything is started at once, it may be the last.

    Empty if it still has none `NO_BOARDS_S` seconds after the first question.

    Raises:
        ServerError: if it does not answer within `timeout` seconds.
    """
    begun = clock()
    while True:
        try:
            found = boards(monitor)
            if found or clock() >= begun + min(timeout, NO_BOARDS_S):
                return found
        except ServerError:
            if clock() >= begun + timeout:
                raise
        sleep(POLL_S)


def boards(monitor: str) -> dict[str, int]:
    """The monitor's GPUs: number by UUID.

    Raises:
        ServerError: if it does not answer.
    """
    try:
        reply = ask(monitor, "/gpus")
        if reply.status == 200:
            return {board.uuid: board.index for board in msgspec.json.decode(reply.body, type=list[_Board])}
    except (CallError, msgspec.MsgspecError) as error:
        msg = f"the monitor at {monitor} cannot be used: {error}"
        raise ServerError(msg) from error
    msg = f"the monitor at {monitor} does not list its GPUs: status {reply.status}"
    raise ServerError(msg)


def start_recording(monitor: str, name: str, roles: dict[str, str]) -> str:
    """Tell the monitor to record power; returns the recording's id.

    Raises:
        ServerError: if it does not.
    """
    body: dict[str, Any] = {"name": name, **({"roles": roles} if roles else {})}
    try:
        reply = ask(monitor, "/recordings", "POST", msgspec.json.encode(body))
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
            answering(at(monitor, f"/recordings/{recording}"), "DELETE", timeout_s=60.0) as response,
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
