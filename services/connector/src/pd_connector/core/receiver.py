"""The workers' half of decode: landing pages, who may write them, and which keys have arrived.

Page states: free → granted (only prefill writes it) → landed (with a `Part`) → loading (being copied into blocks) → free. When a connection
breaks, the pages granted to it are in limbo until its peer can no longer write them. Key states: early (not asked for yet) or expected → complete → taken.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pd_connector.core.latest import forget_oldest
from pd_connector.core.orders import Drop as DropOrder
from pd_connector.core.orders import Event, Expect, Failed, Landing, Near, Pressed, Ready
from pd_connector.core.pages import FREE, Pages
from pd_connector.settings import Settings
from pd_connector.wire.messages import (
    Credit,
    Drop,
    Fail,
    Have,
    Message,
    Need,
    Part,
    ProtocolError,
    Return,
    Revoke,
    Soon,
    Token,
    Want,
)

GRANTED: Final = "granted"
LANDED: Final = "landed"
LOADING: Final = "loading"
LIMBO: Final = "limbo"
REMEMBERED: Final = 10_000
# After prefill reports that all was sent, its last messages on the other connection get this long to arrive.
SENT_GRACE_S: Final = 2.0
# KV of an aborted request is kept this long for a request that replaces it.
PARKED_S: Final = 1.0
# While other KV waits for room, KV that was not asked for is kept no longer than this.
PRESSED_EARLY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` blocks, from the prompt's block `first` on, in these pages of a connection's landing memory."""

    first: int
    count: int
    pages: tuple[int, ...]


@dataclass(slots=True)
class Arrival:
    """One key: what has arrived of it, and whether a request waits for it.

    Attributes:
        kind: the kind of memory in which it arrives.
        link: the push connection on which it arrives.
        total: blocks of the whole prompt; 0 until something arrived.
        extents: the arrived blocks in pages, by their first block.
        got: number of blocks that arrived.
        begun: time of the first part.
        moved: time of the last message about it.
        expected: a request waits for it.
        deadline: end of that wait.
        parked: after an abort, until when another request may replace the first one.
    """

    key: str
    moved: float
    kind: str = ""
    link: int | None = None
    total: int = 0
    extents: dict[int, Extent] = field(default_factory=dict)
    got: int = 0
    begun: float = 0.0
    token: int | None = None
    expected: bool = False
    follows: bool = False
    source: str = ""
    deadline: float = 0.0
    parked: float | None = None
    ready: bool = False

    @property
    def complete(self) -> bool:
        """Whether all blocks have arrived, and the token if one is expected."""
        return 0 < self.total == self.got and (not self.follows or self.token is not None)


@dataclass(slots=True)
class _Link:
    """A push connection. `kind` names its landing memory."""

    kind: str
    granted: set[int] = field(default_factory=set)
    need: int = 0
    revoking: bool = False
    up: bool = True


class Receiver:
    """All keys that arrive at this rank.

    Effects are left in `messages` (to a push connection, by its number), `wants` (to an ask connection, by address), `dial` (addresses to
    connect to) and `events` (for the scheduler's half).
    """

    def __init__(self, boot: str, address: str, settings: Settings, *, tokens: bool = True) -> None:
        """`tokens`: whether this rank receives prefill's tokens."""
        self.messages: list[tuple[int, Message]] = []
        self.wants: list[tuple[str, Message]] = []
        self.dial: list[str] = []
        self.events: list[Event] = []
        self.outcomes: list[str] = []
        self._boot = boot
        self._address = address
        self._settings = settings
        self._tokens = tokens
        self._landing: dict[str, Pages] = {}
        self._links: dict[int, _Link] = {}
        self._arrivals: dict[str, Arrival] = {}
        self._over: OrderedDict[str, str] = OrderedDict()
        self._asks: set[str] = set()
        self._pressed = False

    def __len__(self) -> int:
        return len(self._arrivals)

    # Memory and connections

    def add_memory(self, kind: str, pages: int) -> None:
        """Register landing memory of this kind."""
        self._landing.setdefault(kind, Pages(pages))

    def pages(self, kind: str) -> Pages:
        """The pages of one kind of memory."""
        return self._landing[kind]

    def counts(self) -> dict[str, int]:
        """How many pages there are in each state, all kinds together."""
        found = dict.fromkeys((FREE, GRANTED, LANDED, LOADING, LIMBO), 0)
        for pages in self._landing.values():
            for state, count in pages.counts().items():
                found[state] += count
        return found

    def link_up(self, link: int, kind: str) -> None:
        """A prefill engine connected that writes pages of this kind."""
        self._links[link] = _Link(kind)
        self.grant()

    def link_down(self, link: int, reason: str) -> None:
        """Its connection broke: the missing parts of its keys will not come."""
        found = self._links.get(link)
        if found is None or not found.up:
            return
        found.up, found.need = False, 0
        self._landing[found.kind].move(found.granted, GRANTED, LIMBO)
        for arrival in [arrival for arrival in self._arrivals.values() if arrival.link == link]:
            if not arrival.complete:
                self._fail(arrival, reason)

    def link_quiet(self, link: int) -> None:
        """The peer of this broken connection can no longer write its pages."""
        found = self._links.get(link)
        if found is None or found.up:
            return
        self._landing[found.kind].move(found.granted, LIMBO, FREE)
        del self._links[link]
        self.grant()

    def may_write(self, link: int, pages: Iterable[int]) -> bool:
        """Whether these pages are granted to this connection."""
        found = self._links.get(link)
        return found is not None and found.up and found.granted.issuperset(pages)

    # Messages from prefill

    def hear(self, link: int, message: Message, now: float) -> bool:
        """Handle a message from prefill on a push connection; False if it does not belong there.

        Raises:
            ProtocolError: if prefill breaks a rule; its connection must end.
        """
        found = self._links.get(link)
        if found is None or not found.up:
            return True
        match message:
            case Part():
                self._part(link, found, message, now)
            case Soon(key=key):
                self._soon(key, now)
            case Token(key=key, token=token):
                self._token(key, token, now)
            case Fail(key=key, reason=reason):
                self._told_failed(key, reason)
            case Need(pages=count):
                found.need = count
            case Return(pages=pages):
                self._take_back(found, pages)
            case _:
                return False
        self.grant()
        return True

    def _take_back(self, link: _Link, pages: list[int]) -> None:
        if not link.granted.issuperset(pages):
            msg = "pages that it was not given"
            raise ProtocolError(msg)
        link.granted.difference_update(pages)
        self._landing[link.kind].move(pages, GRANTED, FREE)

    def _part(self, number: int, link: _Link, part: Part, now: float) -> None:
        if not link.granted.issuperset(part.pages) or len(set(part.pages)) != len(part.pages) or not part.pages:
            msg = f"a part in pages that it was not given: {part.pages}"
            raise ProtocolError(msg)
        if not 0 <= part.first < part.first + part.count <= part.total:
            msg = f"blocks {part.first} to {part.first + part.count} of {part.total}"
            raise ProtocolError(msg)
        if part.key in self._over:
            self._take_back(link, part.pages)
            self.messages.append((number, Drop(key=part.key)))
            return
        arrival = self._arrivals.setdefault(part.key, Arrival(part.key, now))
        if arrival.link is None:
            arrival.link, arrival.kind, arrival.total, arrival.begun = number, link.kind, part.total, now
            if arrival.expected:
                self.events.append(Landing(part.key))
        if arrival.link != number or arrival.total != part.total or self._overlaps(arrival, part):
            msg = f"a part of {part.key} that does not fit the ones before"
            raise ProtocolError(msg)
        link.granted.difference_update(part.pages)
        self._landing[link.kind].move(part.pages, GRANTED, LANDED)
        arrival.extents[part.first] = Extent(part.first, part.count, tuple(part.pages))
        arrival.got += part.count
        self._progress(arrival, now)

    def _overlaps(self, arrival: Arrival, part: Part) -> bool:
        return arrival.got + part.count > arrival.total or any(
            extent.first < part.first + part.count and part.first < extent.first + extent.count
            for extent in arrival.extents.values()
        )

    def _token(self, key: str, token: int, now: float) -> None:
        if key in self._over:
            return
        arrival = self._arrivals.setdefault(key, Arrival(key, now))
        arrival.token = token
        self._progress(arrival, now)

    def _soon(self, key: str, now: float) -> None:
        arrival = self._arrivals.get(key)
        if arrival is not None and arrival.expected and not arrival.complete:
            self.events.append(Near(key, now))

    def _progress(self, arrival: Arrival, now: float) -> None:
        arrival.moved = now
        arrival.deadline = max(arrival.deadline, now + self._settings.load_timeout_s)
        if arrival.expected and arrival.complete and not arrival.ready:
            arrival.ready = True
            self.events.append(Ready(arrival.key, arrival.token))

    def _told_failed(self, key: str, reason: str) -> None:
        arrival = self._arrivals.get(key)
        if arrival is None:
            self._end(key, reason)
        elif not arrival.complete:
            self._fail(arrival, reason)

    # Orders of the engine

    def expect(self, order: Expect, now: float) -> None:
        reason = self._over.get(order.key)
        if reason is not None:
            self.events.append(Failed(order.key, reason))
            return
        arrival = self._arrivals.setdefault(order.key, Arrival(order.key, now))
        arrival.expected, arrival.source = True, order.source
        arrival.follows = order.follows and self._tokens
        arrival.deadline, arrival.parked, arrival.ready = now, None, False
        if arrival.link is None:
            self.wants.append((order.source, Want(key=order.key, to=self._address)))
            if order.source not in self._asks:
                self._asks.add(order.source)
                self.dial.append(order.source)
        else:
            self.events.append(Landing(order.key))
        self._progress(arrival, now)

    def park(self, key: str, now: float) -> None:
        """The request for this key was aborted, and another one may replace it."""
        arrival = self._arrivals.get(key)
        if arrival is not None:
            arrival.expected, arrival.follows, arrival.parked = False, False, now + PARKED_S

    def asked(self, address: str, message: Message, now: float) -> bool:
        """Handle a message from prefill on an ask connection; False if it does not belong there."""
        match message:
            case Have(key=key):
                self._have(key, message, now)
            case Fail(key=key, reason=reason):
                arrival = self._arrivals.get(key)
                if arrival is not None and arrival.link is None:
                    self._fail(arrival, reason)
            case _:
                return False
        return address in self._asks

    def _have(self, key: str, message: Have, now: float) -> None:
        arrival = self._arrivals.get(key)
        if arrival is None or not arrival.expected or arrival.complete:
            return
        if message.boot and message.boot != self._boot:
            self._fail(arrival, "prefill sent it to this engine before its restart")
        elif message.sent and arrival.link is None:
            arrival.deadline = now + SENT_GRACE_S
        elif not message.sent:
            arrival.deadline = now + self._settings.queue_timeout_s

    def ask_down(self, address: str, reason: str) -> None:
        """There is no connection to this prefill engine: keys that it has not started to send will not come."""
        self._asks.discard(address)
        for arrival in list(self._arrivals.values()):
            if arrival.source == address and arrival.link is None and arrival.expected:
                self._fail(arrival, reason)

    def drop(self, order: DropOrder) -> None:
        """This key is no longer wanted."""
        arrival = self._arrivals.get(order.key)
        if arrival is None:
            self._end(order.key, f"it was given up here: {order.outcome}")
            return
        self._tell_drop(arrival)
        self._remove(arrival, f"it was given up here: {order.outcome}")
        self.grant()

    def _tell_drop(self, arrival: Arrival) -> None:
        link = self._links.get(arrival.link) if arrival.link is not None else None
        if link is not None and link.up and arrival.got < arrival.total:
            self.messages.append((arrival.link or 0, Drop(key=arrival.key)))
        elif link is None and arrival.source in self._asks:
            self.wants.append((arrival.source, Drop(key=arrival.key)))

    def take(self, key: str) -> tuple[str, list[Extent]] | None:
        """The kind of memory and the extents of a complete key, whose pages change to loading; None if it is not complete."""
        arrival = self._arrivals.get(key)
        if arrival is None or not arrival.complete:
            return None
        extents = self._load(arrival)
        self._remove(arrival, "it was used already")
        return arrival.kind, extents

    def is_coming(self, key: str) -> bool:
        """Whether a key that is not complete may still become so."""
        arrival = self._arrivals.get(key)
        return arrival is not None and not arrival.complete

    def drain(self, key: str) -> tuple[str, list[Extent], bool] | None:
        """As `take`, for what arrived since the last call, and whether it was the last part; None if the key failed."""
        arrival = self._arrivals.get(key)
        if arrival is None:
            return None
        complete = arrival.complete
        extents = self._load(arrival)
        if complete:
            self._remove(arrival, "it was used already")
        return arrival.kind, extents, complete

    def _load(self, arrival: Arrival) -> list[Extent]:
        extents = sorted(arrival.extents.values(), key=lambda extent: extent.first)
        for extent in extents:
            self._landing[arrival.kind].move(extent.pages, LANDED, LOADING)
        arrival.extents = {}
        return extents

    def release(self, kind: str, pages: Iterable[int]) -> None:
        """These pages have been copied into their blocks."""
        self._landing[kind].move(pages, LOADING, FREE)
        self.grant()

    # Ends

    def tick(self, now: float) -> None:
        """Give up keys that take too long."""
        early_s = min(self._settings.early_s, PRESSED_EARLY_S) if self._pressed else self._settings.early_s
        for arrival in list(self._arrivals.values()):
            if arrival.expected and not arrival.complete and now > arrival.deadline:
                self._tell_drop(arrival)
                self._fail(arrival, "it did not come in time")
            elif arrival.parked is not None and now > arrival.parked:
                self._give_up(arrival, "it was given up here: aborted", "aborted")
            elif not arrival.expected and now - arrival.moved > early_s:
                self._give_up(arrival, "no request came for it in time", "expired")
        for link in self._links.values():
            link.revoking = False
        self.grant()

    def _give_up(self, arrival: Arrival, why: str, outcome: str) -> None:
        self._tell_drop(arrival)
        self._remove(arrival, why)
        self.outcomes.append(outcome)

    def _fail(self, arrival: Arrival, reason: str) -> None:
        if arrival.expected:
            self.events.append(Failed(arrival.key, reason))
        self._remove(arrival, reason)

    def _remove(self, arrival: Arrival, why: str) -> None:
        for extent in arrival.extents.values():
            self._landing[arrival.kind].move(extent.pages, LANDED, FREE)
        del self._arrivals[arrival.key]
        self._end(arrival.key, why)

    def _end(self, key: str, why: str) -> None:
        self._over[key] = why
        forget_oldest(self._over, REMEMBERED)

    # Credit

    def grant(self) -> None:
        """Grant free pages: first to connections that are short of them, then an equal share of half of all pages to each, in advance."""
        pressed = False
        for kind, pages in self._landing.items():
            links = {number: link for number, link in self._links.items() if link.up and link.kind == kind}
            if not links:
                continue
            share = max(1, len(pages) // 2 // len(links))
            short = sorted((item for item in links.items() if item[1].need), key=lambda item: len(item[1].granted))
            for number, link in short:
                self._give(pages, number, link, link.need)
            for number, link in links.items():
                if not link.need:
                    self._give(pages, number, link, share - len(link.granted))
            if any(link.need for link in links.values()):
                pressed = True
                self._revoke(links, share // 4)
        if pressed != self._pressed:
            self._pressed = pressed
            self.events.append(Pressed(pressed))

    def _give(self, pages: Pages, number: int, link: _Link, most: int) -> None:
        given = pages.take(most, GRANTED) if most > 0 else []
        if given:
            link.granted.update(given)
            link.need = max(0, link.need - len(given))
            self.messages.append((number, Credit(pages=given)))

    def _revoke(self, links: dict[int, _Link], leave: int) -> None:
        for number, link in links.items():
            if not link.need and not link.revoking and len(link.granted) > leave:
                link.revoking = True
                self.messages.append((number, Revoke(pages=len(link.granted) - leave)))
