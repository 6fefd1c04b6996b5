"""Answers two questions of engines and of those that start and stop them: is this engine admitted, and has an engine that is to stop finished its requests?"""

import asyncio
from typing import Final

import msgspec
from quart import Blueprint, Response, request

from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import BadRequestError
from pd_proxy.supervisor import Supervisor

# Parameters that identify an engine. A caller that gives an address knows it already, so answers need not hold one.
KEYS: Final = ("zmq_address", "http_address", "boot_id")
MAX_WAIT_S: Final = 3600.0
LOOK_S: Final = 0.05


class Membership:
    """Handlers, bound to one proxy's context."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("membership", __name__)
        blueprint.add_url_rule("/admitted", "admitted", self.admitted, methods=["GET"])
        return blueprint

    async def admitted(self) -> Response:
        """200 if the named engine gets requests, else 503 with its state."""
        given = [(key, request.args[key]) for key in KEYS if request.args.get(key)]
        if len(given) != 1:
            raise BadRequestError(f"name the engine by one of {', '.join(KEYS)}")
        found = [i for i in self._context.shown() if getattr(i, given[0][0]) == given[0][1]]
        instance = latest(found)
        admitted = instance is not None and instance.state is State.READY
        body = {
            "admitted": admitted,
            "instance": instance.name if instance else "",
            "state": instance.state if instance else "unknown",
            "reason": instance.reason if instance else "no such engine has announced itself",
        }
        return Response(msgspec.json.encode(body), 200 if admitted else 503, content_type="application/json")


def latest(found: list[Instance]) -> Instance | None:
    """Of several processes that were seen under one name, the one that runs now."""
    alive = [i for i in found if i.state is not State.LOST]
    return next(reversed(alive or found), None)


def named(context: Supervisor, name: str) -> Instance | None:
    """The engine that an operator names, by its name in the proxy or by the one that it announces."""
    return latest([i for i in context.registry.view() if name in (i.name, *(getattr(i, key) for key in KEYS))])


def occupation(context: Supervisor, instance: Instance) -> int:
    """A lower bound on the requests that need an engine: those that run there, whose prefill runs for it, or whose KV decode still has to fetch from it."""
    return max(context.flights.load(instance), context.budget.handovers(instance))


def wait_s(text: str) -> float:
    """The time that the caller wants to wait, in seconds; 0 if it names none.

    Raises:
        BadRequestError: if it is not such a time.
    """
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise BadRequestError(f"`wait_s` must be a number from 0 to {MAX_WAIT_S:g}", param="wait_s")
    return seconds


async def idle(context: Supervisor, instance: Instance, timeout_s: float) -> int:
    """Wait until no request is in flight at an engine; returns how many still are when the time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while (busy := occupation(context, instance)) and loop.time() < end:  # noqa: ASYNC110  # what is counted has no event
        await asyncio.sleep(LOOK_S)
    return busy
