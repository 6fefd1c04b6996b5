"""The scheduler's half of decode: which requests wait for KV, which may run, and what happens if KV does not come.

A waiting request holds no blocks and is checked in every scheduling round, so it runs in the first step after its KV came. If
landing memory is short, it gets its blocks earlier, and KV is copied there as it comes. If nobody else is being decoded, its step begins
shortly before its KV comes, and waits for it.

A request that waits for prefill's token may be aborted and replaced by another one for the same key that does not need the token (the
router could not use it). The KV then belongs to the new request, wherever it is: in landing memory, or already in the old one's blocks, which are kept for a while.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pd_connector.core.latest import forget_oldest
from pd_connector.core.orders import (
    Copy,
    Count,
    Drain,
    Drop,
    Event,
    Expect,
    Failed,
    Forget,
    Landing,
    Load,
    Near,
    Order,
    Park,
    Pressed,
    Ready,
    Release,
)

# On an engine with both roles, decode may see a request before prefill does. It waits this long.
LOCAL_GRACE_S: Final = 1.0
# The blocks of an aborted request are kept this long for a request that replaces it.
HELD_S: Final = 1.0
# An announcement that all KV is about to come is believed this long.
BELIEVED_S: Final = 0.1
# After a step has waited in vain for KV that was announced as almost computed, this engine begins no step before its KV is there for so long.
WARY_S: Final = 60.0
# This many such keys are remembered; those of one step would be enough.
GONE: Final = 1000
# This many tokens of this engine's own prefills are remembered, for requests that come after their prefill has ended.
TOKENS: Final = 1000


class Verdict(Enum):
    """What the scheduler does with a request now."""

    PLAIN = "compute what no cache has"
    WAIT = "ask again in the next round"
    LOAD = "its KV is here: run it in this step"
    SOON = "its KV will be here before the step needs it: run it in this step, alone"
    DRAIN = "give it blocks, and wait until the workers report it"


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict, and the number of tokens whose KV comes from prefill."""

    verdict: Verdict
    tokens: int = 0


PLAIN: Final = Found(Verdict.PLAIN)
WAIT: Final = Found(Verdict.WAIT)


@dataclass(slots=True)
class _Wait:
    """A request whose KV comes from another engine, until it ends.

    Attributes:
        prompt: number of its prompt tokens.
        tokens: how many of them prefill has.
        local: deadline of the wait, if this engine is also the prefill engine.
        shared: another request has the same key and takes the KV.
        before: that other request, if this one replaces it.
        blocks: the blocks with the KV, while the request has them.
        late: prefill's token may come after its step has begun.
        cached: the prefix cache has all of its whole blocks.
        near: when prefill announced that all KV is about to come.
        outcome: the result, as counted in metrics; empty while it waits. `soon`: its step has begun, and its KV may not be there yet.
    """

    request_id: str
    key: str
    prompt: int
    tokens: int
    follows: bool
    local: float | None
    source: str = ""
    late: bool = False
    shared: bool = False
    before: "_Wait | None" = None
    blocks: tuple[int, ...] = ()
    cached: bool = False
    ready: set[int] = field(default_factory=set)
    landing: bool = False
    token: int | None = None
    near: float | None = None
    failed: str = ""
    outcome: str = ""


class Loads:
    """The requests of one decode engine that wait for KV.

    `inbox` receives the workers' events, as pairs of rank and event; other threads may append to it.
    """

    def __init__(self, ranks: int, *, fail: bool, block_size: int = 1, soon: bool = False) -> None:
        """`fail`: a request whose KV does not come fails, instead of being computed here. `block_size` is in tokens.

        `soon`: a step may begin before its KV is there.
        """
        self.inbox: deque[tuple[int, Event]] = deque()
        self._ranks = ranks
        self._fail = fail
        self._block_size = block_size
        self._soon = soon
        self._wary_until = 0.0
        self._waits: dict[str, _Wait] = {}
        self._of_key: dict[str, _Wait] = {}
        self._held: dict[str, tuple[_Wait, float]] = {}  # by key: an aborted request, and until when its blocks stay
        self._pressed: set[int] = set()
        # Keys whose KV was being copied into the blocks of a request that was aborted; the workers stop.
        self._gone: deque[str] = deque(maxlen=GONE)
        self._tokens: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waits)

    def add(
        self,
        request_id: str,
        key: str,
        *,
        source: str,
        prompt: int,
        tokens: int,
        follows: bool,
        now: float,
        late: bool = False,
    ) -> list[Order]:
        """Register a request whose prompt has `prompt` tokens; prefill has the first `tokens`. An empty `source` means this engine itself.

        `late`: if a token `follows`, it can take its place after the step has begun.
        """
        if request_id in self._waits:
            return []
        local = None if source else now + LOCAL_GRACE_S
        wait = self._waits[request_id] = _Wait(
            request_id, key, prompt, tokens, follows, local, source, late=late and self._fits(prompt, tokens)
        )
        if key in self._gone:
            # If it were asked for now, it could be dropped after this request started to wait for it.
            wait.shared, wait.failed = True, "the request before took this KV, and was aborted"
            return []
        first = self._of_key.get(key) or self._held.get(key, (None,))[0]
        if first is not None:
            wait.shared = True
            if first.follows and not follows and first.local is None:
                wait.before = first
            else:
                # Several answers to one prompt: the first one takes the KV; the others find it in the prefix cache, or compute it.
                wait.failed = "another request takes this KV"
            return []
        self._of_key[key] = wait
        if not source and follows and key in self._tokens:
            self.computed_here(key, self._tokens[key])
        return [Expect(key, source, follows)] if source else []

    def _fits(self, prompt: int, tokens: int) -> bool:
        """Whether a token that follows can take its place within a step: it is all that the step computes, and ends no block.

        The prefix cache learns of whole blocks when a step is scheduled, and so would keep the place holder's.
        """
        return tokens == prompt - 1 and prompt % self._block_size > 0

    def read(self) -> None:
        while self.inbox:
            rank, event = self.inbox.popleft()
            if isinstance(event, Pressed):
                (self._pressed.add if event.pressed else self._pressed.discard)(rank)
            elif (wait := self._of_key.get(event.key)) is not None:
                self._note(wait, rank, event)

    def _note(self, wait: _Wait, rank: int, event: Landing | Near | Ready | Failed) -> None:
        if isinstance(event, Landing):
            wait.landing = True
        elif isinstance(event, Near):
            wait.near = event.at
        elif isinstance(event, Ready):
            wait.ready.add(rank)
            wait.token = event.token if event.token is not None else wait.token
        else:
            wait.failed = wait.failed or event.reason

    def computed_here(self, key: str, token: int | None) -> None:
        """This engine's own prefill of a key is over; without a token it was aborted."""
        if token is not None:
            self._tokens[key] = token
            forget_oldest(self._tokens, TOKENS)
        wait = self._of_key.get(key)
        if wait is None or wait.local is None:
            return
        wait.ready.add(0)
        wait.token = token
        if token is None:
            wait.failed = "prefill was aborted"

    def verdict(
        self,
        request_id: str,
        cached: int,
        now: float,
        *,
        computing: bool = False,
        kept: bool = False,
        alone: bool = False,
    ) -> Found:
        """What to do with a request of which the prefix cache has `cached` tokens.

        `computing`, `kept`: the key's state in this engine's own prefill half. `alone`: the engine has nothing else to do.
        """
        wait = self._waits.get(request_id)
        if wait is None or wait.outcome:
            return PLAIN
        self.read()
        if wait.local is not None:
            return self._verdict_here(wait, now, computing=computing, kept=kept)
        usable = min(wait.tokens, wait.prompt - 1) - cached
        wait.cached = usable <= 0 or (cached > 0 and usable < self._block_size)
        if wait.before is not None:
            return self._verdict_behind(wait, wait.before, usable)
        found = self._verdict_there(wait, usable)
        near = found.verdict is Verdict.WAIT and alone and usable > 0 and self._is_near(wait, now)
        return Found(Verdict.SOON, usable) if near else found

    def _is_near(self, wait: _Wait, now: float) -> bool:
        # Ranks that disagree on whether KV came in time would have to agree first, so this is for one rank only.
        wary = self._ranks > 1 or bool(self._pressed) or now < self._wary_until
        return self._soon and self._is_fresh(wait, now) and not wary and (wait.late or not wait.follows)

    @staticmethod
    def _is_fresh(wait: _Wait, now: float) -> bool:
        return wait.near is not None and now - wait.near < BELIEVED_S

    def _verdict_there(self, wait: _Wait, usable: int) -> Found:
        if wait.failed:
            # vLLM fails the request because the workers report its blocks as empty.
            return Found(Verdict.DRAIN, usable) if self._fail and usable > 0 and not wait.shared else PLAIN
        if usable <= 0 and not wait.follows:
            return PLAIN
        if len(wait.ready) == self._ranks:
            return Found(Verdict.LOAD, usable) if usable > 0 else PLAIN
        if self._pressed and wait.landing and usable > 0:
            return Found(Verdict.DRAIN, usable)
        return WAIT

    @staticmethod
    def _verdict_behind(wait: _Wait, first: _Wait, usable: int) -> Found:
        if usable <= 0:
            return PLAIN
        if first.outcome == "drained" or not (first.outcome or first.failed):
            return WAIT
        if first.outcome == "loaded" and first.blocks:
            return Found(Verdict.LOAD, usable)
        wait.before, wait.failed = None, "the request before lost this KV"
        return PLAIN

    @staticmethod
    def _verdict_here(wait: _Wait, now: float, *, computing: bool, kept: bool) -> Found:
        if wait.ready or wait.failed:
            return PLAIN
        if computing:
            return WAIT
        if kept and not wait.follows:
            return PLAIN
        if wait.local is not None and now < wait.local:
            return WAIT
        wait.failed = "prefill did not come"
        return PLAIN

    def key_of(self, request_id: str) -> str | None:
        """The key of a request that still waits for KV."""
        wait = self._waits.get(request_id)
        return wait.key if wait is not None and not wait.outcome else None

    def is_draining(self, request_id: str) -> bool:
        """Whether a request has its blocks, and the workers still fill them as KV comes."""
        wait = self._waits.get(request_id)
        return wait is not None and wait.outcome == "drained"

    def tokens_of(self, request_id: str) -> int:
        """How many of a request's prompt tokens prefill has."""
        return self._waits[request_id].tokens

    def allocated(
        self, request_id: str, blocks: tuple[int, ...], skip: int, external: int, *, soon: bool = False
    ) -> list[Order]:
        """The scheduler gave a request its blocks, `external` of whose tokens come from prefill; the first `skip` blocks are cached.

        `soon`: it acts on the verdict SOON.
        """
        wait = self._waits.get(request_id)
        if wait is None or wait.outcome:
            return []
        if external > 0 and wait.before is not None:
            return [self._copy(wait, wait.before, blocks, skip)]
        if external > 0:
            wait.blocks = blocks
            return [self._into(wait, blocks, skip, soon=soon)]
        wait.outcome = "recomputed" if wait.failed and not wait.cached else "cached"
        if wait.shared:
            return [Count(wait.outcome)] if wait.local is None else []
        if wait.local is not None:
            return [Forget(wait.key, "decode runs here")]
        return [Drop(wait.key, wait.outcome)]

    def _into(self, wait: _Wait, blocks: tuple[int, ...], skip: int, *, soon: bool) -> Load | Drain:
        if soon:
            wait.outcome = "soon"
            return Load(wait.request_id, wait.key, blocks, skip, soon=True)
        if len(wait.ready) == self._ranks and not wait.failed:
            wait.outcome = "loaded"
            return Load(wait.request_id, wait.key, blocks, skip)
        wait.outcome = "drained"
        return Drain(wait.request_id, wait.key, blocks, skip)

    def _copy(self, wait: _Wait, first: _Wait, blocks: tuple[int, ...], skip: int) -> Copy:
        wait.outcome, wait.before = "loaded", None
        held = self._held.pop(wait.key, None)
        sources, first.blocks = first.blocks, ()
        return Copy(wait.request_id, wait.key, sources, blocks, skip, held[0].request_id if held else "")

    def preempted(self, request_ids: Iterable[str]) -> None:
        """The engine preempts these requests and takes their blocks."""
        for wait in [self._waits[request_id] for request_id in request_ids if request_id in self._waits]:
            wait.blocks = ()

    def hold(self, request_id: str, now: float) -> bool:
        """Whether the blocks of an aborted request must be kept for one that may replace it. Called before `finished`."""
        wait = self._waits.get(request_id)
        if wait is None or not (wait.follows and wait.outcome == "loaded" and wait.blocks):
            return False
        if self._of_key.get(wait.key) is not wait:
            return False
        self._held[wait.key] = (wait, now + HELD_S)
        return True

    def expired(self, now: float) -> list[Order]:
        """Requests whose kept blocks were not claimed in time."""
        if not self._held:
            return []
        wanted = {id(wait.before) for wait in self._waits.values() if wait.before is not None and not wait.outcome}
        over = [key for key, (wait, until) in self._held.items() if now > until and id(wait) not in wanted]
        return [Release(self._held.pop(key)[0].request_id) for key in over]

    def came(self, request_id: str) -> int | None:
        """KV came within its request's step. Returns prefill's token, if that was to follow."""
        wait = self._waits.get(request_id)
        if wait is None or wait.outcome != "soon":
            return None
        self.read()
        wait.outcome = "loaded"
        return wait.token if wait.follows else None

    def lost(self, request_id: str, now: float) -> None:
        """KV did not come within its request's step."""
        self.read()
        wait = self._waits.get(request_id)
        # If prefill said at once that it will not come, because its client left for example, hardly any time was lost.
        if wait is None or not (wait.failed and self._is_fresh(wait, now)):
            self._wary_until = now + WARY_S
        if wait is not None and wait.outcome == "soon":
            wait.outcome = "lost"

    def drained(self, request_id: str) -> None:
        """The workers report that a request that was filled as its KV came is complete."""
        wait = self._waits.get(request_id)
        if wait is not None and self.is_draining(request_id):
            self.read()
            wait.outcome = "recomputed" if wait.failed else "loaded"

    def token(self, request_id: str) -> tuple[int | None, str]:
        """Prefill's token for a request that runs now, or the reason why it is missing although the request needs it."""
        wait = self._waits.get(request_id)
        if wait is None or not wait.follows:
            return None, ""
        self.read()
        if wait.token is None:
            return None, wait.failed or "prefill's token did not come"
        return wait.token, ""

    def finished(self, request_id: str) -> tuple[list[Order], str]:
        """A request ended; its outcome is `aborted` if it still waited."""
        wait = self._waits.pop(request_id, None)
        if wait is None:
            return [], ""
        if self._of_key.get(wait.key) is wait:
            del self._of_key[wait.key]
        if self._held.get(wait.key, (None,))[0] is not wait:
            wait.blocks = ()
        if wait.outcome or wait.shared:
            found = wait.outcome
            if found == "drained":
                wait.outcome = "aborted"
                self._gone.append(wait.key)
            return [], found
        if wait.local is not None:
            return [Forget(wait.key, "its decode ended")], "aborted"
        return self._pass_on(wait) if wait.follows else [Drop(wait.key, "aborted")], "aborted"

    def _pass_on(self, wait: _Wait) -> list[Order]:
        """Pass the KV of a request that never ran to the one that replaces it, unless that one runs already, because the prefix cache had all of its prompt."""
        heirs = [other for other in self._waits.values() if other.before is wait and not other.outcome]
        if not heirs:
            return [Park(wait.key)]
        heir, *others = heirs
        for other in others:
            other.before, other.failed = None, "another request takes this KV"
        heir.before, heir.shared, heir.failed = None, False, wait.failed
        self._of_key[wait.key] = heir
        return [] if wait.failed else [Expect(heir.key, heir.source, follows=False)]
