"""Where engines and their keepers ask: is this engine admitted, and is everything over at one that shall be stopped?"""

import asyncio
from typing import Final

import msgspec
from quart import Blueprint, Response, request

from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import BadRequestError
from pd_proxy.supervisor import Supervisor

# By what an engine can name itself. Who asks with an address knows it already, and reads none here.
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
        """200 if the engine that is named gets requests, else 503 with its state."""
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
    """Of several processes that were seen under one name, the one that is there."""
    alive = [i for i in found if i.state is not State.LOST]
    return next(reversed(alive or found), None)


def named(context: Supervisor, name: str) -> Instance | None:
    """The engine that an operator means, by its name or as it names itself."""
    return latest([i for i in context.registry.view() if name in (i.name, *(getattr(i, key) for key in KEYS))])


def occupation(context: Supervisor, instance: Instance) -> int:
    """Requests at an engine, or on their way: whose prefill runs for it, or whose KV decode has to fetch from it. At least so many."""
    return max(context.flights.load(instance), context.budget.handovers(instance))


def wait_s(text: str) -> float:
    """The time that somebody wants to wait, in seconds; 0 without one.

    Raises:
        BadRequestError: if it is none.
    """
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise BadRequestError(f"`wait_s` must be a number from 0 to {MAX_WAIT_S:g}", param="wait_s")
    return seconds


async def idle(context: Supervisor, instance: Instance, timeout_s: float) -> int:
    """Wait until nothing is in flight at an engine; returns what still is after the time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while (busy := occupation(context, instance)) and loop.time() < end:  # noqa: ASYNC110  # what is counted has no event
        await asyncio.sleep(LOOK_S)
    return busy
