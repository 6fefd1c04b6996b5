"""A prefill and a decode engine without vLLM, sockets or real memory, and a network that loses connections, for tests of `pd_connector.core`.

Nothing happens by itself: each step of a message, a copy or a clock is one call, so that a test chooses their order. KV is a pair of key and block
index; whoever reads another one than it should sees it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pd_connector.core.loads import Loads, Verdict
from pd_connector.core.orders import Begin, Computed, Drain, Drop, Ended, Expect, Forget, Load, Order, Park, Preempted
from pd_connector.core.plan import Plan
from pd_connector.core.receiver import LOADING, Receiver
from pd_connector.core.sender import MOVING, Piece, Put, Sender
from pd_connector.settings import Settings
from pd_connector.wire.messages import Message

BLOCK = 4  # tokens
KIND = "host"
SOON_S = 0.05  # how long decode waits within a step
Cell = tuple[str, int] | None


@dataclass
class Connection:
    """A connection between an engine that opened it and one that accepted it; each way is first in, first out."""

    number: int
    opener: Any
    acceptor: Any
    purpose: str
    there: deque[Message] = field(default_factory=deque)
    back: deque[Message] = field(default_factory=deque)
    open: bool = True
    opener_knows: bool = False  # that it broke
    acceptor_knows: bool = False


class PrefillEngine:
    """Blocks, requests in them, and the prefill half of the connector."""

    def __init__(self, address: str, settings: Settings, *, staging: int, page_blocks: int, blocks: int = 64) -> None:
        self.address = address
        self.boot = f"boot-{address}"
        self.plan = Plan(BLOCK, keep_blocks=blocks // 2)
        self.sender = Sender(page_blocks, settings)
        self.sender.add_memory(KIND, staging)
        self.staging: dict[int, list[Cell]] = {}
        self.cache: dict[int, Cell] = {}
        self.free = list(range(blocks))
        self.owned: dict[str, list[int]] = {}
        self.tokens: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.computed: dict[str, int] = {}
        self.held: set[str] = set()
        self.beside: list[Piece] = []
        self.moving: list[Put] = []
        self.clock = 0.0

    def do(self, orders: list[Order]) -> None:
        """What a worker does with orders, before the step that they come with."""
        for order in orders:
            match order:
                case Begin():
                    self.sender.begin(order, self.clock)
                case Preempted(key=key):
                    self.finish_beside()  # a worker has the step wait for these copies
                    self.sender.preempted(key)
                case Ended():
                    self.sender.ended(order, self.clock)
                case Forget(key=key, reason=reason):
                    self.sender.forget(key, reason)
                case _:
                    raise AssertionError(order)

    def request(self, request_id: str, key: str, to: str | None, tokens: int) -> None:
        self.tokens[request_id], self.keys[request_id], self.computed[request_id] = tokens, key, 0
        self.owned[request_id] = []
        self.do(self.plan.add(request_id, key, to, tokens))

    def step(self, request_id: str, tokens: int) -> bool:
        """Compute so many tokens more; False if there are no blocks for them."""
        computed = min(self.computed[request_id] + tokens, self.tokens[request_id])
        mine = self.owned[request_id]
        fresh = -(-computed // BLOCK) - len(mine)
        if fresh > len(self.free):
            return False
        new = [self.free.pop(0) for _ in range(fresh)]
        anew = not mine
        mine += new
        for index in range(-(-computed // BLOCK)):
            self.cache[mine[index]] = (self.keys[request_id], index)
        self.computed[request_id] = computed
        orders = self.plan.scheduled(request_id, mine if anew else new, computed, anew=anew)
        sends = [order for order in orders if isinstance(order, Computed)]
        self.do([order for order in orders if not isinstance(order, Computed)])
        for send in sends:
            self.sender.computed(send, None, self.clock)
        pieces = self.sender.gather([send.key for send in sends])
        for piece in pieces:
            self._copy(piece)
        self.sender.gathered(pieces, None, self.clock)
        return True

    def _copy(self, piece: Piece) -> None:
        self.staging[piece.page] = [self.cache.get(block) for block in piece.blocks]

    def begin_beside(self) -> None:
        self.beside += self.sender.gather()

    def finish_beside(self) -> None:
        for piece in self.beside:
            self._copy(piece)
        self.sender.gathered(self.beside, None, self.clock)
        self.beside = []

    def preempt(self, request_id: str) -> None:
        self.do(self.plan.preempted(request_id))
        self._give_back(request_id)
        self.owned[request_id], self.computed[request_id] = [], 0

    def end(self, request_id: str, *, aborted: bool) -> None:
        token = None if aborted else 7
        finish = self.plan.finished(request_id, token, settled=self.sender.is_settled(self.keys[request_id]))
        if finish is not None and finish.hold:
            self.held.add(request_id)
        else:
            self._give_back(request_id)
        if finish is not None:
            self.do(finish.orders)

    def collect(self) -> None:
        """Blocks that the sender releases are the engine's again."""
        released, self.sender.released = self.sender.released, set()
        assert released <= self.held, "released without being held, or twice"
        self.held -= released
        self.plan.released(released)
        for request_id in released:
            self._give_back(request_id)

    def _give_back(self, request_id: str) -> None:
        for block in self.owned[request_id]:
            self.cache[block] = None  # somebody else's, from now on
            self.free.append(block)
        self.owned[request_id] = []


class DecodeEngine:
    """Requests that wait for KV, landing pages, and the decode half of the connector."""

    def __init__(self, address: str, settings: Settings, *, landing: int, page_blocks: int) -> None:
        self.address = address
        self.boot = f"boot-{address}"
        self.receiver = Receiver(self.boot, address, settings)
        self.receiver.add_memory(KIND, landing)
        self.loads = Loads(1, fail=False, block_size=BLOCK, soon=True)
        self.in_step: Load | None = None
        self.in_time = 0  # KV that came while a step waited for it
        self.tokens: dict[str, int | None] = {}  # prefill's, which came with such KV
        self.landing: dict[int, list[Cell]] = {}
        self.page_blocks = page_blocks
        self.total: dict[str, int] = {}
        self.key: dict[str, str] = {}
        self.draining: dict[str, tuple[Drain, dict[int, Cell]]] = {}
        self.loading: list[list[int]] = []
        self.outcome: dict[str, str] = {}
        self.clock = 0.0

    def do(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Expect():
                    self.receiver.expect(order, self.clock)
                case Drop():
                    self.receiver.drop(order)
                case Park(key=key):
                    self.receiver.park(key, self.clock)
                case Load(soon=True):
                    assert self.in_step is None, "two requests in a step that waits"
                    self.in_step = order
                case Load():
                    assert self._load(order), "a load of what is not complete"
                case Drain():
                    self.draining[order.request_id] = (order, {})
                case _:
                    raise AssertionError(order)

    def _load(self, order: Load) -> bool:
        found = self.receiver.take(order.key)
        if found is None:
            return False
        cells: dict[int, Cell] = {}
        self._read(found[1], cells)
        self._check(order.request_id, cells)
        self.outcome[order.request_id] = "loaded"
        return True

    def end_step(self) -> None:
        """The step that waits for KV goes on, with it or without."""
        order, self.in_step = self.in_step, None
        if order is None:
            return
        if self._load(order):
            self.in_time += 1
            self.feed()
            self.tokens[order.request_id] = self.loads.came(order.request_id)
        else:
            self.receiver.drop(Drop(order.key, "late"))
            self.loads.lost(order.request_id, self.clock)
            self.outcome[order.request_id] = "lost"

    def look(self) -> None:
        """The step that waits looks whether its KV is there, or will not come."""
        if self.in_step is not None and not self.receiver.is_coming(self.in_step.key):
            self.end_step()

    def request(self, request_id: str, key: str, source: str, tokens: int, *, follows: bool) -> None:
        self.total[request_id], self.key[request_id] = -(-tokens // BLOCK), key
        prompt = tokens + 1 if follows else tokens
        self.do(
            self.loads.add(
                request_id, key, source=source, prompt=prompt, tokens=tokens, follows=follows, now=self.clock, late=True
            )
        )

    def schedule(self, request_id: str, *, alone: bool = False) -> None:
        """One scheduling round for a request that waits; `alone`: there is nobody else."""
        if request_id in self.outcome or request_id in self.draining or self.in_step is not None:
            return
        self.feed()
        found = self.loads.verdict(request_id, 0, self.clock, alone=alone)
        if found.verdict is Verdict.WAIT:
            return
        assert alone or found.verdict is not Verdict.SOON
        external = found.tokens if found.verdict is not Verdict.PLAIN else 0
        soon = found.verdict is Verdict.SOON
        self.do(self.loads.allocated(request_id, tuple(range(self.total[request_id])), 0, external, soon=soon))
        if not external:
            self.outcome[request_id] = "computed"

    def feed(self) -> None:
        events, self.receiver.events = self.receiver.events, []
        self.loads.inbox.extend((0, event) for event in events)

    def drain(self) -> None:
        """What a worker does for drains in every step."""
        for request_id, (order, cells) in list(self.draining.items()):
            found = self.receiver.drain(order.key)
            if found is None:
                self.outcome[request_id] = "computed"
            else:
                self._read(found[1], cells)
                if not found[2]:
                    continue
                self._check(request_id, cells)
                self.outcome[request_id] = "loaded"
            del self.draining[request_id]

    def _read(self, extents: list[Any], cells: dict[int, Cell]) -> None:
        for extent in extents:
            rows = [cell for page in extent.pages for cell in self.landing[page]]
            for offset in range(extent.count):
                cells[extent.first + offset] = rows[offset]
            self.loading.append(list(extent.pages))

    def _check(self, request_id: str, cells: dict[int, Cell]) -> None:
        expected = {index: (self.key[request_id], index) for index in range(self.total[request_id])}
        assert cells == expected, f"wrong KV for {request_id}"

    def release_one(self) -> None:
        if self.loading:
            self.receiver.release(KIND, self.loading.pop(0))

    def leave(self, request_id: str) -> None:
        """The request is over, or its client left."""
        if self.in_step is not None:
            self.end_step()  # an engine hears of that between two steps
        orders, outcome = self.loads.finished(request_id)
        self.outcome.setdefault(request_id, outcome or "over")
        self.do(orders)
        drain = self.draining.pop(request_id, None)
        if drain is not None:
            self.receiver.drop(Drop(drain[0].key, "aborted"))


class Network:
    """Connections between engines, by address."""

    def __init__(self, prefills: list[PrefillEngine], decodes: list[DecodeEngine]) -> None:
        self.prefills, self.decodes = prefills, decodes
        self.by_address: dict[str, Any] = {one.address: one for one in prefills} | {one.address: one for one in decodes}
        self.connections: list[Connection] = []
        self.unquiet: list[Connection] = []
        self.numbers = 0

    def find(self, opener: Any, acceptor: Any, purpose: str) -> Connection | None:
        for found in self.connections:
            same = found.opener is opener and found.acceptor is acceptor and found.purpose == purpose
            if same and not found.opener_knows:
                return found
        return None

    def collect(self) -> None:
        """Take what the engines want sent, and connect those that dial."""
        for prefill in self.prefills:
            dial, prefill.sender.dial = prefill.sender.dial, []
            for address in dial:
                self._connect(prefill, self.by_address[address], "push")
            messages, prefill.sender.messages = prefill.sender.messages, []
            for address, message in messages:
                self._post(self.find(prefill, self.by_address[address], "push"), prefill, message)
            answers, prefill.sender.answers = prefill.sender.answers, []
            for number, message in answers:
                self._post(self._numbered(number), prefill, message)
        for decode in self.decodes:
            dial, decode.receiver.dial = decode.receiver.dial, []
            for address in dial:
                self._connect(decode, self.by_address[address], "ask")
            pushed, decode.receiver.messages = decode.receiver.messages, []
            for number, message in pushed:
                self._post(self._numbered(number), decode, message)
            wants, decode.receiver.wants = decode.receiver.wants, []
            for address, message in wants:
                self._post(self.find(decode, self.by_address[address], "ask"), decode, message)

    def _numbered(self, number: int) -> Connection | None:
        return next((found for found in self.connections if found.number == number), None)

    def _connect(self, opener: Any, acceptor: Any, purpose: str) -> None:
        self.numbers += 1
        connection = Connection(self.numbers, opener, acceptor, purpose)
        self.connections.append(connection)
        if purpose == "push":
            acceptor.receiver.link_up(connection.number, KIND)
            opener.sender.up(acceptor.address, acceptor.boot, KIND, soon=True)

    @staticmethod
    def _post(connection: Connection | None, author: Any, message: Message) -> None:
        if connection is not None and connection.open:
            (connection.there if author is connection.opener else connection.back).append(message)

    def deliver(self, connection: Connection, *, back: bool) -> bool:
        queue = connection.back if back else connection.there
        if not queue:
            return False
        message, opener, acceptor = queue.popleft(), connection.opener, connection.acceptor
        if connection.purpose == "push" and not back:
            if not connection.acceptor_knows:
                assert acceptor.receiver.hear(connection.number, message, acceptor.clock)
        elif connection.purpose == "push":
            if not connection.opener_knows:
                assert opener.sender.hear(acceptor.address, message)
        elif not back:
            if not connection.acceptor_knows:
                assert acceptor.sender.asked(connection.number, message, acceptor.clock)
        elif not connection.opener_knows:
            opener.receiver.asked(acceptor.address, message, opener.clock)
        return True

    def cut(self, connection: Connection) -> None:
        """It breaks; what is on the way is lost, and each end will notice by itself."""
        connection.open = False
        connection.there.clear()
        connection.back.clear()

    def notice(self, connection: Connection, *, opener: bool) -> None:
        if connection.open or (connection.opener_knows if opener else connection.acceptor_knows):
            return
        if opener:
            connection.opener_knows = True
            if connection.purpose == "push":
                connection.opener.sender.down(connection.acceptor.address, "the connection broke")
                if connection.acceptor_knows:
                    self.unquiet.append(connection)
            else:
                connection.opener.receiver.ask_down(connection.acceptor.address, "the connection broke")
        else:
            connection.acceptor_knows = True
            if connection.purpose == "push":
                connection.acceptor.receiver.link_down(connection.number, "the connection broke")
                if connection.opener_knows:
                    self.unquiet.append(connection)
            else:
                connection.acceptor.sender.gone(connection.number)
        if connection.opener_knows and connection.acceptor_knows:
            self.connections.remove(connection)

    def settle_writes(self) -> None:
        """Once prefill's last copies for a broken connection are over, decode hears that nothing writes its pages any more."""
        for connection in list(self.unquiet):
            moving = any(put.peer.address == connection.acceptor.address for put in connection.opener.moving)
            if not moving:
                connection.acceptor.receiver.link_quiet(connection.number)
                self.unquiet.remove(connection)

    def begin_puts(self, prefill: PrefillEngine) -> None:
        prefill.moving += prefill.sender.puts()

    def finish_put(self, prefill: PrefillEngine, most: int = 1) -> None:
        puts, prefill.moving = prefill.moving[:most], prefill.moving[most:]
        for put in puts:
            decode = self.by_address[put.peer.address]
            state = decode.receiver.pages(KIND).state(put.page)
            assert state not in ("free", "landed", LOADING), f"a write to a page that is {state}"
            assert prefill.sender.pages(KIND).state(put.piece.page) == MOVING
            decode.landing[put.page] = list(prefill.staging[put.piece.page])
        for peer in {id(put.peer): put.peer for put in puts}.values():
            mine = [put for put in puts if put.peer is peer]
            parts = prefill.sender.moved(mine, 100, prefill.clock)
            connection = self.find(prefill, self.by_address[peer.address], "push")
            for part in parts:
                self._post(connection, prefill, part)
        self.settle_writes()

    def advance(self, seconds: float) -> None:
        for prefill in self.prefills:
            prefill.clock += seconds
        for decode in self.decodes:
            decode.clock += seconds
            if seconds > SOON_S:
                decode.end_step()
        for prefill in self.prefills:
            prefill.sender.tick(prefill.clock)
        for decode in self.decodes:
            decode.receiver.tick(decode.clock)

    def run(self, rounds: int = 400) -> None:
        """Let everything happen that is on its way, until nothing is left to happen."""
        for _ in range(rounds):
            self.collect()
            busy = self._deliver_all()
            for prefill in self.prefills:
                busy |= self._copy_all(prefill)
            for decode in self.decodes:
                busy |= self._land_all(decode)
            self.collect()
            if not busy and not any(connection.there or connection.back for connection in self.connections):
                return
        msg = "it never comes to rest"
        raise AssertionError(msg)

    def _deliver_all(self) -> bool:
        busy = False
        for connection in list(self.connections):
            for back in (False, True):
                while self.deliver(connection, back=back):
                    busy = True
            if not connection.open:
                busy = True
                self.notice(connection, opener=False)
                self.notice(connection, opener=True)
        return busy

    def _copy_all(self, prefill: PrefillEngine) -> bool:
        prefill.begin_beside()
        busy = bool(prefill.beside)
        prefill.finish_beside()
        self.begin_puts(prefill)
        busy |= bool(prefill.moving) or bool(prefill.sender.released)
        self.finish_put(prefill, len(prefill.moving))
        prefill.collect()
        return busy

    @staticmethod
    def _land_all(decode: DecodeEngine) -> bool:
        busy = bool(decode.loading) or bool(decode.receiver.events)
        while decode.loading:
            decode.release_one()
        decode.feed()
        decode.drain()
        decode.look()
        return busy
