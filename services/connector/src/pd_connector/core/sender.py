"""The workers' half of prefill: from computed blocks through staging pages to the pages that decode has granted.

A key's KV moves in pieces of one page each. States: computed (in blocks) → gathering → gathered (in a staging page) → moving → told (`Part`).
Blocks are needed until they are gathered, and a staging page until its piece has moved. A granted page belongs to decode again with `Part` or
`Return`. However a key ends, each of the three is given back exactly once.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pd_connector.core.latest import forget_oldest
from pd_connector.core.orders import Begin, Computed, Ended
from pd_connector.core.pages import FREE, Pages
from pd_connector.settings import Settings
from pd_connector.wire.messages import Credit, Drop, Fail, Have, Message, Need, Part, Return, Revoke, Soon, Token, Want

GATHERING: Final = "gathering"
GATHERED: Final = "gathered"
MOVING: Final = "moving"
# Ended keys are remembered, so that an engine that asks for one learns at once that it will not come.
REMEMBERED: Final = 10_000
# The prompts of one request come within this time of each other. Later no new digest can appear.
SIBLINGS_S: Final = 2.0


@dataclass(slots=True)
class Job:
    """One key that is being sent.

    Attributes:
        request_id: the request that has the blocks.
        blocks: computed blocks, from the first of the prompt on.
        taken: number of blocks that are gathered or being gathered.
        gathered: number of blocks that are copied out.
        told: number of blocks that were reported to decode.
        mark: GPU event after which the blocks are computed.
        asker: ask connection of the decode engine that wanted it.
        held: the engine keeps the blocks of the ended request until it is released.
        ended: the request has ended.
        moved: time of the last progress.
    """

    key: str
    request_id: str
    to: str | None
    total: int
    moved: float
    blocks: list[int] = field(default_factory=list)
    taken: int = 0
    gathered: int = 0
    told: int = 0
    mark: Any = None
    token: Token | None = None
    token_sent: bool = False
    asker: int | None = None
    held: bool = False
    ended: bool = False
    failed: bool = False


@dataclass(slots=True, eq=False)
class Piece:
    """Blocks of a key, and the staging page for them. After `mark` they are in the page."""

    job: Job
    peer: "Peer"
    first: int
    blocks: list[int]
    page: int
    beside: bool
    mark: Any = None


@dataclass(slots=True, eq=False)
class Peer:
    """One connection to a decode engine. After it breaks, the next one to the same address is a new peer.

    Attributes:
        kind: the staging memory that its transport sends from.
        soon: it wants to hear of KV that is almost computed.
        waiting: gathered pieces that need credit.
        needed: pages beyond its credit that decode was asked for.
        staged: pages of staging memory in use for it.
    """

    address: str
    kind: str = ""
    boot: str = ""
    up: bool = False
    soon: bool = False
    credit: list[int] = field(default_factory=list)
    waiting: deque[Piece] = field(default_factory=deque)
    needed: int = 0
    staged: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """A piece and the granted page that it goes to."""

    piece: Piece
    peer: Peer
    page: int


class Sender:
    """All keys that this rank computes for other engines.

    Effects are left in `messages` (to a push connection, by address), `answers` (to an ask connection), `dial` (addresses to connect to)
    and `released` (requests whose blocks the engine may reuse).
    """

    def __init__(self, page_blocks: int, settings: Settings) -> None:
        """A page takes `page_blocks` blocks."""
        self.page_blocks = page_blocks
        self._staging: dict[str, Pages] = {}
        self.messages: list[tuple[str, Message]] = []
        self.answers: list[tuple[int, Message]] = []
        self.dial: list[str] = []
        self.released: set[str] = set()
        self.outcomes: list[str] = []
        self._settings = settings
        self._jobs: dict[str, Job] = {}
        self._peers: dict[str, Peer] = {}
        self._wanted: dict[str, tuple[Want, int, float]] = {}
        self._over: OrderedDict[str, Have | Fail] = OrderedDict()
        self._since: OrderedDict[str, float] = OrderedDict()  # of a router's key: when its first prompt came

    def __len__(self) -> int:
        return len(self._jobs)

    def add_memory(self, kind: str, pages: int) -> None:
        """Register staging memory of this kind."""
        self._staging.setdefault(kind, Pages(pages))

    def pages(self, kind: str) -> Pages:
        """The pages of one kind of memory."""
        return self._staging[kind]

    def counts(self) -> dict[str, int]:
        """How many pages there are in each state, all kinds together."""
        found = dict.fromkeys((FREE, GATHERING, GATHERED, MOVING), 0)
        for pages in self._staging.values():
            for state, count in pages.counts().items():
                found[state] += count
        return found

    # The engine

    def begin(self, order: Begin, now: float) -> None:
        if order.key in self._jobs:
            return
        self._remember_since(order.key, now)
        self._jobs[order.key] = job = Job(order.key, order.request_id, None, order.total, now)
        job.failed = order.key in self._over  # decode has already dropped it
        if job.failed:
            return
        wanted = self._wanted.pop(order.key, None)
        if wanted is not None:
            job.asker = wanted[1]
            self.answers.append((wanted[1], Have(key=order.key)))
        to = order.to or (wanted[0].to if wanted is not None else None)
        if to is not None:
            self._name(job, to, now)

    def computed(self, order: Computed, mark: Any, now: float) -> None:
        """These blocks are computed once `mark` has passed."""
        job = self._jobs.get(order.key)
        if job is None or job.failed:
            return
        job.blocks[order.first :] = order.blocks
        job.mark, job.moved = mark, now

    def preempted(self, key: str) -> None:
        """A request was preempted: blocks that are not gathered are lost and will be computed again."""
        job = self._jobs.get(key)
        if job is not None:
            del job.blocks[job.taken :]

    def ended(self, order: Ended, now: float) -> None:
        """A request ended; without a token its KV is incomplete and stays so."""
        job = self._jobs.get(order.key)
        if job is None:
            self.released |= {order.request_id} if order.held else set()
            return
        job.ended, job.held, job.moved = True, order.held, now
        if job.failed:
            self._settle(job)
            return
        if order.token is None:
            self._fail(job, "prefill was aborted", "aborted")
            return
        job.token = Token(key=job.key, token=order.token)
        self._settle(job)

    def forget(self, key: str, reason: str) -> None:
        """Forget this key unless a decode engine has asked for it."""
        job = self._jobs.get(key)
        if job is not None and job.to is None:
            self._fail(job, reason, "forgotten")

    def is_settled(self, key: str) -> bool:
        """Whether all KV of a key has been copied out of its blocks, so that they may be reused."""
        job = self._jobs.get(key)
        return job is None or job.failed or job.gathered == job.total

    # Copies

    def gather(self, keys: Iterable[str] | None = None) -> list[Piece]:
        """Pieces to copy into their pages now: those of `keys` within the step or, with None, all others, in parallel to steps."""
        found: list[Piece] = []
        for job in self._jobs.values() if keys is None else [self._jobs[key] for key in keys if key in self._jobs]:
            peer = self._ready_for(job)
            if peer is not None:
                found += self._pieces(job, peer, beside=keys is None)
        return found

    def has_backlog(self) -> bool:
        """Whether `gather(None)` would find something."""
        return any(self._ready_for(job) is not None for job in self._jobs.values())

    def _ready_for(self, job: Job) -> Peer | None:
        """The peer to which more of a job can be sent now, if staging memory allows."""
        peer = self._peers.get(job.to or "")
        if job.failed or job.taken >= len(job.blocks) or peer is None or not peer.up:
            return None
        return peer if self._staging[peer.kind].free and peer.staged < self._share(peer.kind) else None

    def _share(self, kind: str) -> int:
        """The number of pages that each peer may use, so that a stalled peer leaves room for the others."""
        peers = sum(peer.up and peer.kind == kind for peer in self._peers.values())
        return max(1, len(self._staging[kind]) // max(1, peers))

    def _pieces(self, job: Job, peer: Peer, *, beside: bool) -> list[Piece]:
        found: list[Piece] = []
        pages, share = self._staging[peer.kind], self._share(peer.kind)
        while job.taken < len(job.blocks) and pages.free and peer.staged < share:
            [page] = pages.take(1, GATHERING)
            peer.staged += 1
            blocks = job.blocks[job.taken : job.taken + self.page_blocks]
            found.append(Piece(job, peer, job.taken, blocks, page, beside))
            job.taken += len(blocks)
        return found

    def _give_back(self, pieces: Iterable[Piece], state: str) -> None:
        for piece in pieces:
            self._staging[piece.peer.kind].move([piece.page], state, FREE)
            piece.peer.staged -= 1

    def gathered(self, pieces: list[Piece], mark: Any, now: float) -> None:
        """These pieces are in their pages once `mark` has passed; their blocks do not change before."""
        self._give_back([piece for piece in pieces if piece.job.failed], GATHERING)
        for piece in [piece for piece in pieces if not piece.job.failed]:
            self._staging[piece.peer.kind].move([piece.page], GATHERING, GATHERED)
            piece.mark = mark
            piece.job.gathered += len(piece.blocks)
            piece.job.moved = now
            piece.peer.waiting.append(piece)
        self._settle_all(piece.job for piece in pieces)

    def puts(self) -> list[Put]:
        """Pieces that have credit and can be moved now."""
        found: list[Put] = []
        for peer in self._peers.values():
            while peer.waiting and peer.credit:
                piece = peer.waiting.popleft()
                self._staging[peer.kind].move([piece.page], GATHERED, MOVING)
                found.append(Put(piece, peer, peer.credit.pop(0)))
            if len(peer.waiting) != peer.needed and peer.up:
                peer.needed = len(peer.waiting)
                self.messages.append((peer.address, Need(pages=peer.needed)))
        return found

    def moved(self, puts: list[Put], block_bytes: int, now: float, checksums: list[int] | None = None) -> list[Part]:
        """These pieces are in decode's pages. Returns the messages for decode, if its connection still stands."""
        parts: list[Part] = []
        for index, put in enumerate(puts):
            self._give_back([put.piece], MOVING)
            if self._peers.get(put.peer.address) is not put.peer:
                continue  # decode, which granted the page, has seen the connection break too
            piece, job = put.piece, put.piece.job
            if job.failed:
                self.messages.append((put.peer.address, Return(pages=[put.page])))
                continue
            job.told += len(piece.blocks)
            job.moved = now
            size = len(piece.blocks) * block_bytes
            checksum = checksums[index] if checksums else None
            parts.append(
                Part(
                    key=job.key,
                    first=piece.first,
                    count=len(piece.blocks),
                    total=job.total,
                    pages=[put.page],
                    size=size,
                    checksum=checksum,
                )
            )
        self._settle_all(put.piece.job for put in puts)
        return parts if checksums else merged(parts, self.page_blocks)

    # Before all is computed

    def foreseeable(self, keys: Collection[str]) -> list[str]:
        """Those of the keys that a step completes which decode wants to hear of, and whose KV nothing that is known now will hold up."""
        return [
            key
            for key in keys
            if key in self._jobs and self._jobs[key].taken < self._jobs[key].total and self._unhindered(key, keys)
        ]

    def _unhindered(self, key: str, keys: Collection[str]) -> bool:
        job = self._jobs[key]
        peer = self._peers.get(job.to or "")
        if job.failed or peer is None or not peer.up or not peer.soon:
            return False
        return self._needs(peer, keys) <= len(peer.credit)

    def _needs(self, peer: Peer, keys: Collection[str]) -> int:
        """Pages for the rest of these keys, and of all whose computation has begun."""
        jobs = [job for job in self._jobs.values() if job.to == peer.address and not job.failed]
        begun = [job for job in jobs if job.blocks or job.key in keys]
        return len(peer.waiting) + sum(-(-(job.total - job.taken) // self.page_blocks) for job in begun)

    def soon(self, keys: Collection[str]) -> list[str]:
        """All of these keys is almost computed: tell decode of those that it wants to hear of, which are returned."""
        # The copies of a long step are launched long before it is computed.
        found = [key for key in keys if key in self._jobs and self._unhindered(key, keys)]
        self.messages += [(self._jobs[key].to or "", Soon(key=key)) for key in found]
        return found

    # Decode engines

    def up(self, address: str, boot: str, kind: str, *, soon: bool = False) -> Peer:
        """The connection to a decode engine is open; its transport sends from this kind of memory. `soon`: it wants to hear of KV that is almost computed."""
        peer = self._peers.setdefault(address, Peer(address))
        peer.boot, peer.kind, peer.up, peer.soon = boot, kind, True, soon
        self._settle_all([job for job in self._jobs.values() if job.to == address])  # a token may have waited for this
        return peer

    def down(self, address: str, reason: str) -> None:
        """The connection broke or could not be opened: only its keys fail."""
        peer = self._peers.pop(address, None)
        if peer is None:
            return
        self._give_back(peer.waiting, GATHERED)
        for job in [job for job in self._jobs.values() if job.to == address]:
            self._fail(job, reason, "peer lost")

    def hear(self, address: str, message: Message) -> bool:
        """Handle a message from decode on a push connection; False if it does not belong there."""
        peer = self._peers.get(address)
        match message:
            case Credit(pages=pages) if peer is not None:
                peer.credit = sorted(peer.credit + pages)
            case Revoke(pages=count) if peer is not None:
                spare = min(count, max(0, len(peer.credit) - len(peer.waiting)))
                kept = len(peer.credit) - spare
                self.messages.append((address, Return(pages=peer.credit[kept:])))
                del peer.credit[kept:]
            case Drop(key=key):
                self._drop(key, address)
            case _:
                return False
        return True

    def _drop(self, key: str, address: str | None) -> None:
        job = self._jobs.get(key)
        if job is None:
            self._over.setdefault(key, Fail(key=key, reason="decode does not want it"))
        elif address is None or job.to == address:
            self._fail(job, "decode does not want it", "dropped", tell=False)

    def asked(self, channel: int, message: Message, now: float) -> bool:
        """Handle a message from decode on an ask connection; False if it does not belong there."""
        match message:
            case Want():
                self.answers += [(channel, found) for found in self._answer(channel, message, now)]
            case Drop(key=key):
                self._wanted.pop(key, None)
                self._drop(key, None)
            case _:
                return False
        return True

    def _answer(self, channel: int, want: Want, now: float) -> list[Have | Fail]:
        over = self._over.get(want.key)
        if over is not None:
            return [over]
        job = self._jobs.get(want.key)
        if job is None:
            since = self._since.get(want.key.rpartition(".")[0])
            if since is not None and now - since > SIBLINGS_S:
                return [Fail(key=want.key, reason="prefill computed another prompt under this key")]
            self._wanted[want.key] = (want, channel, now)
            return []
        job.asker = channel
        if job.to is None:
            self._name(job, want.to, now)
        elif job.to != want.to:
            return [Fail(key=want.key, reason="prefill sends it to another engine")]
        return [Have(key=want.key, boot=self._boot(job))]

    def gone(self, channel: int) -> None:
        """An ask connection ended; its wishes for unknown keys are forgotten."""
        self._wanted = {key: entry for key, entry in self._wanted.items() if entry[1] != channel}

    def _boot(self, job: Job) -> str:
        peer = self._peers.get(job.to or "")
        return peer.boot if peer is not None else ""

    def _name(self, job: Job, to: str, now: float) -> None:
        job.to, job.moved = to, now
        if to not in self._peers:
            self._peers[to] = Peer(to)
            self.dial.append(to)

    # Ends

    def tick(self, now: float) -> None:
        """Give up keys that take too long."""
        for job in list(self._jobs.values()):
            if job.failed or not job.ended:
                continue  # the engine still has the request and reports its end
            if job.to is None and now - job.moved > self._settings.keep_s:
                self._fail(job, "nobody asked for it in time", "expired")
            elif job.to is not None and now - job.moved > self._settings.send_timeout_s:
                self._fail(job, "decode had no room in time", "no room")
        limit = now - self._settings.queue_timeout_s
        self._wanted = {key: entry for key, entry in self._wanted.items() if entry[2] > limit}

    def _fail(self, job: Job, reason: str, outcome: str, *, tell: bool = True) -> None:
        if job.failed:
            return
        job.failed = True
        self.outcomes.append(outcome)
        last = Fail(key=job.key, reason=reason)
        peer = self._peers.get(job.to or "")
        if peer is not None:
            self._give_back([piece for piece in peer.waiting if piece.job is job], GATHERED)
            peer.waiting = deque(piece for piece in peer.waiting if piece.job is not job)
        if tell and peer is not None and peer.up:
            self.messages.append((peer.address, last))
        elif tell and job.asker is not None:
            self.answers.append((job.asker, last))
        self._end(job, last)
        self._settle(job)

    def _settle_all(self, jobs: Iterable[Job]) -> None:
        for job in list({id(job): job for job in jobs}.values()):
            self._settle(job)

    def _settle(self, job: Job) -> None:
        """Free the blocks and pages of a job that are no longer needed."""
        peer = self._peers.get(job.to or "")
        if job.token is not None and not job.token_sent and not job.failed and peer is not None and peer.up:
            self.messages.append((peer.address, job.token))
            job.token_sent = True
        if job.held and (job.failed or job.gathered == job.total):
            # A piece that is being gathered in parallel to steps still reads the blocks of a failed job, although the piece is not used.
            self.released.add(job.request_id)
            job.held = False
        if job.failed:
            if job.ended:
                self._jobs.pop(job.key, None)
        elif job.ended and job.token_sent and job.told == job.total:
            self.outcomes.append("sent")
            self._end(job, Have(key=job.key, boot=self._boot(job), sent=True))
            del self._jobs[job.key]

    def _end(self, job: Job, last: Have | Fail) -> None:
        self._over[job.key] = last
        forget_oldest(self._over, REMEMBERED)

    def _remember_since(self, key: str, now: float) -> None:
        self._since.setdefault(key.rpartition(".")[0], now)
        forget_oldest(self._since, REMEMBERED)


def merged(parts: list[Part], page_blocks: int) -> list[Part]:
    """Merge adjacent parts with full pages into one message."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if (
            last is not None
            and last.key == part.key
            and last.first + last.count == part.first
            and last.count == len(last.pages) * page_blocks
        ):
            found[-1] = Part(
                key=last.key,
                first=last.first,
                count=last.count + part.count,
                total=last.total,
                pages=last.pages + part.pages,
                size=last.size + part.size,
            )
        else:
            found.append(part)
    return found
