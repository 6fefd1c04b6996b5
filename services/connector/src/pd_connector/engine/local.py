"""Direct calls between the workers' half and the scheduler's half if both are in one process, without waiting for a step."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pd_connector.core.orders import Event
from pd_connector.net.station import Station

Mailed: TypeAlias = tuple[int, Event]


class Scheduler(Protocol):
    """What the worker's half tells the scheduler's within a step: in the thread of the engine's steps, which is the scheduler's."""

    def came(self, request_id: str) -> int | None:
        """The KV for which the step waited is there. Returns the token that takes the place of the prompt's last one, if it was to follow."""
        ...

    def lost(self, request_id: str, blocks: tuple[int, ...]) -> None:
        """The step goes on without the KV that it waited for, which belonged in these blocks."""
        ...


class Mail:
    """Events for the scheduler's half: delivered directly if it is in this process, else with the next step's output. Any thread may post."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._listener: Callable[[Mailed], None] | None = None
        self._waiting: deque[Mailed] = deque()
        self.scheduler: Scheduler | None = None

    def listen(self, append: Callable[[Mailed], None], scheduler: Scheduler) -> None:
        """The scheduler's half is in this process."""
        self._listener, self.scheduler = append, scheduler
        for item in self.take():
            append(item)

    def post(self, event: Event) -> None:
        (self._listener or self._waiting.append)((self._rank, event))

    def take(self) -> list[Mailed]:
        """The events that were not delivered yet."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]


@dataclass(frozen=True, slots=True)
class Resident:
    """A worker's half in this process. `late_tokens`: it can change a token of a step that has begun."""

    station: Station
    mail: Mail
    late_tokens: bool = False


# By the engine's id; more than one engine may be in a process (tests, notebooks).
_residents: dict[str, Resident] = {}


def publish(engine_id: str, resident: Resident) -> None:
    """The only worker of this engine is in this process."""
    _residents[engine_id] = resident


def withdraw(engine_id: str) -> None:
    _residents.pop(engine_id, None)


def find(engine_id: str) -> Resident | None:
    """The worker of this engine, if it is in this process."""
    return _residents.get(engine_id)
