"""Orders from the scheduler's half of the connector to the workers' half, and events back. The halves may be different processes, so all can be pickled."""

from dataclasses import dataclass
from typing import Final, TypeAlias

# Prefill: to the sender


@dataclass(frozen=True, slots=True)
class Begin:
    """A request came whose KV is for a decode engine; it may still be queued. `total` is the number of the prompt's blocks."""

    request_id: str
    key: str
    to: str | None
    total: int


@dataclass(frozen=True, slots=True)
class Computed:
    """The coming step computes these blocks of a prompt; `first` is the index of the first of them.

    Attributes:
        last: they are the last ones of the prompt.
        early: they are wanted before the step ends.
    """

    key: str
    first: int
    blocks: tuple[int, ...]
    last: bool = False
    early: bool = False


@dataclass(frozen=True, slots=True)
class Preempted:
    """A request was preempted before its prompt was complete; blocks that were not gathered are computed again."""

    key: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A request is over.

    Attributes:
        token: the first token of its answer; None if it has none, because it was aborted.
        held: its blocks are kept until the sender releases the request.
    """

    request_id: str
    key: str
    token: int | None
    held: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """KV that was kept for a later request is no longer needed, or takes too much room."""

    key: str
    reason: str


# Decode: to the receiver


@dataclass(frozen=True, slots=True)
class Expect:
    """A request came that continues where `source` ended. With `follows` it also waits for prefill's token."""

    key: str
    source: str
    follows: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Copy KV that has arrived completely into these blocks before the step; the first `skip` blocks already have it. With `soon` it may still be to arrive."""

    request_id: str
    key: str
    blocks: tuple[int, ...]
    skip: int
    soon: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Copy KV into these blocks as it comes, between steps, because landing memory is short; then report the request."""

    request_id: str
    key: str
    blocks: tuple[int, ...]
    skip: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy this key's KV from another request's blocks `sources` before the step; then release the blocks of `release`, if any."""

    request_id: str
    key: str
    sources: tuple[int, ...]
    blocks: tuple[int, ...]
    skip: int
    release: str = ""


@dataclass(frozen=True, slots=True)
class Park:
    """The request for this key was aborted before it ran; another one may replace it, but only soon."""

    key: str


@dataclass(frozen=True, slots=True)
class Release:
    """No request claimed the KV in the blocks of an aborted request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """This KV is not wanted; `outcome` is the reason, as counted in metrics."""

    key: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Count:
    """Count a request whose key belongs to another request; nothing becomes of the key."""

    outcome: str


# These must be carried out with a step; the others at any time.
WITH_STEP: Final = (Computed, Preempted, Load, Drain, Copy)
Order: TypeAlias = (
    Begin | Computed | Preempted | Ended | Forget | Expect | Load | Drain | Copy | Park | Release | Drop | Count
)


# Back to the scheduler's half


@dataclass(frozen=True, slots=True)
class Landing:
    """The first part of an expected key arrived."""

    key: str


@dataclass(frozen=True, slots=True)
class Ready:
    """All of an expected key arrived, with the token if one was expected."""

    key: str
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Near:
    """All of an expected key will have arrived a few milliseconds after `at`, if nothing goes wrong."""

    key: str
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """An expected key will not come."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pressed:
    """Whether landing memory is full while more KV is waiting."""

    pressed: bool


Event: TypeAlias = Landing | Near | Ready | Failed | Pressed
