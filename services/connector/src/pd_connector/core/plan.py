"""The scheduler's half of prefill: which step computes which blocks, and which blocks the engine must keep."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pd_connector.core.orders import Begin, Computed, Ended, Forget, Order, Preempted


@dataclass(slots=True)
class _Prompt:
    key: str
    to: str | None
    tokens: int
    total: int
    early: bool
    blocks: list[int] = field(default_factory=list)
    told: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """The result of a request's end: `hold` keeps its blocks until `Plan.released`; `blocks` is the number of its prompt's blocks."""

    orders: list[Order]
    hold: bool
    blocks: int


class Plan:
    """The prompts of one prefill engine."""

    def __init__(self, block_size: int, keep_blocks: int) -> None:
        """`keep_blocks`: maximum number of blocks held for KV whose decode engine is not known yet."""
        self._block_size = block_size
        self._keep_blocks = keep_blocks
        self._prompts: dict[str, _Prompt] = {}
        self._held: dict[str, _Prompt] = {}  # by request, the oldest first
        self._owner: dict[str, str] = {}  # request by key
        self._sharing: dict[str, int] = {}  # blocks of the prompt, by request whose key another one has

    def __len__(self) -> int:
        return len(self._prompts) + len(self._held)

    def add(self, request_id: str, key: str, to: str | None, tokens: int, *, early: bool = False) -> list[Order]:
        """Register a request; `early`: its KV is wanted before its token.

        The key of another request is not sent twice: several answers to one prompt share it.
        """
        total = -(-tokens // self._block_size)
        if request_id in self._prompts:
            return []
        if key in self._owner:
            self._sharing[request_id] = total
            return []
        self._prompts[request_id] = _Prompt(key, to, tokens, total, early)
        self._owner[key] = request_id
        return [Begin(request_id, key, to, total)]

    def scheduled(self, request_id: str, blocks: Iterable[int], computed: int, *, anew: bool) -> list[Order]:
        """The next step brings a request to `computed` tokens. `blocks` are the new ones, or all of them if it starts `anew`.

        Only full blocks are reported, and at the end of the prompt also the last one.
        """
        prompt = self._prompts.get(request_id)
        if prompt is None:
            return []
        orders = self._restart(prompt) if anew else []
        prompt.blocks += blocks
        upto = prompt.total if computed >= prompt.tokens else computed // self._block_size
        if upto > prompt.told:
            ready = tuple(prompt.blocks[prompt.told : upto])
            last = upto == prompt.total
            # KV of the steps before has the whole next step to reach decode.
            orders.append(Computed(prompt.key, prompt.told, ready, last=last, early=last and prompt.early))
            prompt.told = upto
        return orders

    def preempted(self, request_id: str) -> list[Order]:
        """A request was preempted; unless it has ended, it starts again."""
        prompt = self._prompts.get(request_id)
        return [] if prompt is None else self._restart(prompt)

    def _restart(self, prompt: _Prompt) -> list[Order]:
        known = bool(prompt.blocks)
        prompt.blocks, prompt.told = [], 0
        return [Preempted(prompt.key)] if known else []

    def finished(self, request_id: str, token: int | None, *, settled: bool) -> Finish | None:
        """A request ended, with or without its first `token`. `settled`: all its KV has been copied out of its blocks.

        A request that shares another's key has nothing to send. Its answer names the KV too, because of several answers vLLM returns the last one's.
        """
        shared = self._sharing.pop(request_id, 0)
        prompt = self._prompts.pop(request_id, None)
        if prompt is None:
            return Finish([], hold=False, blocks=shared) if shared and token is not None else None
        whole = token is not None and prompt.told == prompt.total
        hold = whole and not settled
        orders: list[Order] = [Ended(request_id, prompt.key, token if whole else None, held=hold)]
        if hold:
            self._held[request_id] = prompt
            orders += self._shed()
        else:
            del self._owner[prompt.key]
        return Finish(orders, hold, prompt.total if whole else 0)

    def _shed(self) -> list[Order]:
        """Forget the oldest KV that was not asked for, if there is too much."""
        waiting = [prompt for prompt in self._held.values() if prompt.to is None]
        excess = sum(prompt.total for prompt in waiting) - self._keep_blocks
        orders: list[Order] = []
        for prompt in waiting:
            if excess <= 0:
                break
            orders.append(Forget(prompt.key, "newer KV needed its room"))
            excess -= prompt.total
        return orders

    def released(self, request_ids: Collection[str]) -> None:
        """The engine may reuse the blocks of these requests."""
        for request_id in request_ids:
            prompt = self._held.pop(request_id, None)
            if prompt is not None:
                del self._owner[prompt.key]

    def key_of(self, request_id: str) -> str | None:
        """The key of a request that has not ended."""
        prompt = self._prompts.get(request_id)
        return None if prompt is None else prompt.key

    def computes(self, key: str) -> bool:
        """Whether this engine still has to compute this key."""
        return self._owner.get(key) in self._prompts

    def keeps(self, key: str) -> bool:
        """Whether this engine has this key in blocks of a finished request."""
        return self._owner.get(key) in self._held
