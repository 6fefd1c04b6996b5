"""The interface of a connector, called at each point of a request's life. The base class is an engine without a connector."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pd_contracts.names import Role
from pd_simulator.clock import sleep_until
from pd_simulator.faults import Faults
from pd_simulator.transfer.kv_accounting import Books


def _at_once(tokens: int) -> float:  # noqa: ARG001 - the interface
    return 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where this engine stands: its role, its addresses, and what its transfer shares with the rest of it.

    Attributes:
        receive_s: seconds for which taking the KV of a number of tokens keeps this engine busy.
    """

    role: Role
    name: str
    model: str
    host: str
    bind_host: str
    kv_port: int
    shared_path: str = ""
    lease_s: float = 30.0
    leak_s: float = 10.0
    load_timeout_s: float = 30.0
    faults: Faults = field(default_factory=Faults)
    books: Books = field(default_factory=Books)
    receive_s: Callable[[int], float] = _at_once


@dataclass(frozen=True, slots=True)
class Move:
    """A request, as far as its KV is concerned.

    Attributes:
        params: the body's `kv_transfer_params`.
        token: its newest output token; None before the first.
        aborted: the output is no longer wanted.
    """

    request_id: str
    prompt: list[int]
    max_tokens: int
    params: dict[str, Any]
    token: int | None = None
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan for a request's KV.

    Attributes:
        external: number of prompt tokens whose KV comes from elsewhere.
        fetches: it is fetched before the request may join the batch (else: loaded inside its first step).
        sends: it leaves inside the step that completes the prompt; `peer` numbers the engines that it can go to.
        keeps: it stays here when the request ends, for a peer to fetch.
    """

    external: int = 0
    fetches: bool = False
    sends: bool = False
    peer: int = 0
    keeps: bool = False


class Transfer:
    """No connector: every engine computes its own KV.

    Attributes:
        sends_beside: KV leaves when the step that computed it has ended, beside the next ones; otherwise inside the step.
    """

    sends_beside: ClassVar[bool] = False

    def __init__(self, site: Site) -> None:
        self.site = site
        self.books = site.books
        self._receiver_free_at = 0.0

    async def start(self) -> None:
        """Open what must be open before the first request."""

    async def close(self) -> None: ...

    def plan(self, move: Move) -> Plan:  # noqa: ARG002 - the interface
        """Decide about a new request.

        Raises:
            ApiError: if this engine cannot run it.
        """
        return Plan()

    async def fetch(self, move: Move) -> bytes | None:  # noqa: ARG002 - the interface
        """Bring the KV here, outside the step; None if the engine has to compute the prompt itself.

        Raises:
            ApiError: if it cannot be had; the request fails.
        """
        return b""

    async def load(self, move: Move) -> tuple[bytes, float]:  # noqa: ARG002 - the interface
        """Bring the KV here, inside the request's first step; the whole batch waits for it.

        Returns:
            The entries, and the monotonic time from which they could be had: the step cannot have begun before it.
        """
        return b"", 0.0

    async def save(self, move: Move, entries: bytes) -> None:
        """Send the KV of a prompt that this step completes; the whole batch waits for it."""

    def finished(self, move: Move, entries: bytes | None) -> dict[str, Any] | None:  # noqa: ARG002 - the interface
        """Let go of a request's KV. `entries` is the prompt's KV if the request ended by itself and its plan keeps it.

        Returns:
            The `kv_transfer_params` of its response, if any.
        """
        return None

    async def take_turn(self, tokens: int) -> None:
        """Wait until this engine has taken all KV that came before, and then this one's."""
        busy = self.site.receive_s(tokens)
        if busy:
            self._receiver_free_at = max(time.monotonic(), self._receiver_free_at) + busy
            await sleep_until(self._receiver_free_at)

    def report(self) -> Books:
        """The books as of now."""
        return self.books

    def peers(self) -> dict[tuple[str, str], float]:
        """Whether a connection stands, by KV address and transport of the other engine."""
        return {}

    def rejected(self, params: dict[str, Any]) -> None:
        """A body with these `kv_transfer_params` was refused before it became a request."""
