"""Which KV a decode engine expects, has, or does not want any more: the bookkeeping of `batched_connector`, without GPUs."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

# Longer than any backlog of sends; then the prompt is computed here instead.
LOAD_TIMEOUT_S: Final = 30.0
# KV without a request for this long is abandoned: its decode was restarted, or the proxy that knew of it.
ORPHAN_S: Final = 2 * LOAD_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Load:
    """KV of one request, and where it goes.

    Attributes:
        request_id: as prefill and decode both know it.
        block_ids: blocks of decode's KV cache, in the prompt's order.
        skip: so many of them hold a cached beginning of the prompt already.
        ready: whether the KV is known to be here, so that the coming step may use it.
    """

    request_id: str
    block_ids: list[int]
    skip: int = 0
    ready: bool = False


@dataclass(slots=True)
class Outcome:
    """What becomes of the loads at one look.

    Attributes:
        arrived: loads whose KV is here.
        overdue: loads whose KV did not come in time.
        unwanted: requests whose KV is here, and nobody waits for it.
        abandoned: requests that ended while their KV was on its way.
    """

    arrived: list[Load] = field(default_factory=list)
    overdue: list[Load] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)
    abandoned: set[str] = field(default_factory=set)


class Loads:
    """The loads of one engine; a request is expected, then unwanted or gone."""

    def __init__(self, timeout_s: float = LOAD_TIMEOUT_S, orphan_s: float = ORPHAN_S) -> None:
        self._timeout_s = timeout_s
        self._orphan_s = orphan_s
        self._known: set[str] = set()
        self._expected: dict[str, tuple[Load, float]] = {}
        self._unwanted: set[str] = set()
        self._nobodys: dict[str, float] = {}

    def know(self, request_id: str) -> None:
        """There is such a request; it may still queue for long before it is expected or declined."""
        self._known.add(request_id)

    def expect(self, load: Load, now: float) -> None:
        """The KV of this request will come, or is here."""
        self.use(load.request_id)
        self._expected[load.request_id] = (load, now + self._timeout_s)

    def use(self, request_id: str) -> None:
        """What comes or is here under this id is for a request of now, whatever became of an earlier one with the same id."""
        self._known.discard(request_id)
        self._unwanted.discard(request_id)

    def decline(self, request_id: str) -> None:
        """The KV of this request may come, and nobody needs it."""
        self._known.discard(request_id)
        self._unwanted.add(request_id)

    def look(self, here: Collection[str], ended: set[str], now: float) -> Outcome:
        """Judge all by the requests whose KV is `here` and those that `ended`; what is reported is reported once."""
        outcome = Outcome()
        for request_id in ended & self._expected.keys():
            del self._expected[request_id]
            self._unwanted.add(request_id)
            outcome.abandoned.add(request_id)
        for request_id, (load, deadline) in list(self._expected.items()):
            if request_id in here:
                outcome.arrived.append(load)
            elif now > deadline:
                outcome.overdue.append(load)
                self._unwanted.add(request_id)
            else:
                continue
            del self._expected[request_id]
        taken = {load.request_id for load in outcome.arrived}
        self._note_orphans([request_id for request_id in here if request_id not in taken], now)
        outcome.unwanted = [request_id for request_id in self._unwanted if request_id in here]
        self._unwanted.difference_update(outcome.unwanted)
        return outcome

    def _note_orphans(self, left: list[str], now: float) -> None:
        self._nobodys = {
            request_id: self._nobodys.get(request_id, now) for request_id in left if request_id not in self._known
        }
        for request_id in [one for one, since in self._nobodys.items() if now - since > self._orphan_s]:
            del self._nobodys[request_id]
            self._unwanted.add(request_id)
