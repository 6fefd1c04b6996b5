"""What the scheduler's half of the connector tells the workers' half, and what comes back. They may be different processes: all of it pickles."""

from dataclasses import dataclass
from typing import Final, TypeAlias

# Prefill: to the sender


@dataclass(frozen=True, slots=True)
class Begin:
    """A request came whose KV is for decode; it may still queue. `total` counts the prompt's blocks."""

    request_id: str
    key: str
    to: str | None
    total: int


@dataclass(frozen=True, slots=True)
class Computed:
    """The coming step computes these blocks of a prompt; `first` is the index of the first of them."""

    key: str
    first: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preempted:
    """The engine takes a request's blocks away before its prompt is whole; what was not gathered is computed again."""

    key: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A request is over.

    Attributes:
        token: the first token of its answer; None if it has none, because it was aborted.
        stopped: the answer ends with that token.
        held: its blocks stay until the sender releases the request.
    """

    request_id: str
    key: str
    token: int | None
    stopped: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """KV that is kept for whoever asks is not needed any more, or takes too much room."""

    key: str
    reason: str


# Decode: to the receiver


@dataclass(frozen=True, slots=True)
class Expect:
    """A request came that goes on where `source` ends; `follows`: it also waits for prefill's token."""

    key: str
    source: str
    follows: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Put KV, all of which is here, into these blocks before the step; the first `skip` of them have theirs already."""

    request_id: str
    key: str
    blocks: tuple[int, ...]
    skip: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Put KV into these blocks as it comes, between the steps, because landing memory is short; then report the request."""

    request_id: str
    key: str
    blocks: tuple[int, ...]
    skip: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Another request has this key's KV in its blocks `sources`: copy it before the step; the engine then gets back the blocks of `release`, if any."""

    request_id: str
    key: str
    sources: tuple[int, ...]
    blocks: tuple[int, ...]
    skip: int
    release: str = ""


@dataclass(frozen=True, slots=True)
class Park:
    """The request for this key was aborted before it ran; another one may come for the same key, but only soon."""

    key: str


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody came for the KV that an aborted request has in its blocks."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody wants this KV; `outcome` counts why."""

    key: str
    outcome: str


# These belong to a step; the others may be carried out at once.
WITH_STEP: Final = (Computed, Preempted, Load, Drain, Copy)
Order: TypeAlias = Begin | Computed | Preempted | Ended | Forget | Expect | Load | Drain | Copy | Park | Release | Drop


# Back to the scheduler's half


@dataclass(frozen=True, slots=True)
class Landing:
    """The first part of an expected key is here."""

    key: str


@dataclass(frozen=True, slots=True)
class Ready:
    """All of an expected key is here, and the token if it was to follow."""

    key: str
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """An expected key will not come."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pressed:
    """Landing memory is full and more KV waits to come, or no longer so."""

    pressed: bool


Event: TypeAlias = Landing | Ready | Failed | Pressed
