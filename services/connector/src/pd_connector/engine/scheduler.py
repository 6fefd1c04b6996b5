"""The scheduler's half: translates the calls of vLLM's scheduler to `core`'s plan and loads."""

import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from pd_connector.core.loads import WAIT, Found, Loads, Verdict
from pd_connector.core.orders import WITH_STEP, Drop, Forget, Order
from pd_connector.core.plan import Plan
from pd_connector.engine import compat
from pd_connector.engine.compat import Facts
from pd_connector.engine.local import Mailed, Resident
from pd_connector.net.stats import Stats
from pd_connector.settings import Settings
from pd_connector.wire import params

log = logging.getLogger(f"vllm.{__name__}")
# In each round vLLM's scheduler asks how many tokens come from another engine, and whether it must wait for them.
Matched = tuple[int | None, bool]
NOTHING: Final[Matched] = (0, False)
LATER: Final[Matched] = (None, False)
LOST: Final = "its KV was announced and did not come"


class SchedulerHalf:
    """The requests of one engine whose KV goes to other engines or comes from them."""

    def __init__(self, facts: Facts, settings: Settings, address: str, resident: Resident | None) -> None:
        """`resident`: the worker's half, if it is in this process."""
        self._facts = facts
        self._settings = settings
        self._address = address
        self._resident = resident
        self._plan = Plan(facts.block_size, int(facts.blocks * settings.keep_fraction))
        soon = settings.soon_wait_ms > 0 and resident is not None
        self._loads = Loads(facts.ranks, fail=facts.fails, block_size=facts.block_size, soon=soon)
        self._requests: dict[str, Any] = {}  # requests that wait for KV, because a token may follow
        self._orders: list[Order] = []
        self._idle = True
        self._waited = False
        self._others = False
        self._soon = ""
        self._running: set[str] = set()  # requests that got blocks, until they end
        self._pool: Any = None
        self._late_tokens = resident is not None and resident.late_tokens
        # A worker in this process reports what this half counts, too.
        self._stats = Stats() if resident is None else resident.station.plant.stats
        if resident is not None:
            resident.mail.listen(self._loads.inbox.append, self)

    def bind(self, pool: Any) -> None:
        """Take vLLM's pool of blocks, whose prefix cache must forget blocks whose KV did not come."""
        self._pool = pool

    # A request's life

    def on_new_request(self, request: Any) -> None:
        """Register a request. If its KV parameters are invalid, it is served as an ordinary request."""
        try:
            wish = params.parse(request.kv_transfer_params)
        except params.ParamsError as error:
            self._ignore(request, str(error))
            return
        if wish is None:
            return
        prompt = compat.prompt_of(request)
        if prompt is None:
            self._ignore(request, "its prompt has no token ids")
        elif isinstance(wish, params.Prefill):
            self._prefill(request, wish, prompt)
        else:
            self._decode(request, wish, prompt)

    def _ignore(self, request: Any, reason: str) -> None:
        log.warning("P2pConnector: the `pd` of request %s is ignored: %s", request.request_id, reason)
        self._stats.count("ignored")

    def _prefill(self, request: Any, wish: params.Prefill, prompt: list[int]) -> None:
        if not self._facts.sends:
            self._ignore(request, "this engine sends no KV (kv_role)")
            return
        to = None if wish.to == self._address else wish.to
        key = params.kv_key(wish.key, prompt, compat.extras_of(request))
        self._tell(self._plan.add(request.request_id, key, to, len(prompt), early=wish.kv_first))

    def _decode(self, request: Any, wish: params.Decode, prompt: list[int]) -> None:
        local = wish.source == self._address
        if not self._facts.takes and not local:
            self._ignore(request, "this engine takes no KV (kv_role)")
            return
        tokens = min(wish.tokens or len(prompt), len(prompt) - 1 if wish.follows else len(prompt))
        key = params.kv_key(wish.key, prompt[:tokens], compat.extras_of(request))
        if tokens < 1 or compat.needs_whole_prompt(request):
            self._ignore(request, "its prompt has to be computed here")
            self._tell([Forget(key, "its decode computes it") if local else Drop(key, "not needed")])
            return
        self._requests[request.request_id] = request
        self._tell(
            self._loads.add(
                request.request_id,
                key,
                source="" if local else wish.source,
                prompt=len(prompt),
                tokens=tokens,
                follows=wish.follows,
                now=time.monotonic(),
                late=self._late_tokens and not compat.reads_prompt(request),
            )
        )

    def matched(self, request: Any, cached: int) -> Matched:
        """How many tokens after the `cached` ones come from prefill, now or between steps; None means ask again."""
        if self._soon:
            return LATER  # nobody else is to wait in that step
        found = self._matched(request, cached)
        self._others = self._others or found != LATER
        return found

    def _matched(self, request: Any, cached: int) -> Matched:
        request_id = request.request_id
        if request_id not in self._requests:
            return NOTHING
        found = self._verdict(request_id, cached)
        if found.verdict is Verdict.WAIT and self._is_idle():
            found = self._look_longer(request_id, cached)
        if found.verdict is Verdict.WAIT:
            return LATER
        if found.verdict is Verdict.DRAIN:
            return found.tokens, True
        if self._resident is not None:
            self._resident.station.plant.trace.note("scheduled", self._loads.key_of(request_id) or "")
        if found.verdict is Verdict.SOON:
            self._soon = request_id
        else:
            self._settle_token(request)
        return found.tokens, False

    def _verdict(self, request_id: str, cached: int) -> Found:
        key = self._loads.key_of(request_id) or ""
        computing, kept = self._plan.computes(key), self._plan.keeps(key)
        # vLLM schedules those that have blocks without asking, even after a round in which it scheduled none of them.
        alone = self._idle and not self._others and not self._running and self._pool is not None
        return self._loads.verdict(request_id, cached, time.monotonic(), computing=computing, kept=kept, alone=alone)

    def _is_idle(self) -> bool:
        """Whether the engine does nothing in this round but wait for KV."""
        return self._resident is not None and self._idle and not self._waited and self._settings.idle_wait_ms > 0

    def _look_longer(self, request_id: str, cached: int) -> Found:
        """Wait a little, so that KV is noticed when it arrives and not only in the engine's next round."""
        self._waited = True
        if self._resident is None:
            return WAIT
        arrived = self._resident.station.incoming.arrived
        arrived.clear()
        found = self._verdict(request_id, cached)
        if found.verdict is Verdict.WAIT and arrived.wait(self._settings.idle_wait_ms / 1000):
            found = self._verdict(request_id, cached)
        return found

    def _settle_token(self, request: Any) -> None:
        """Before a request runs, set its prompt's last token to prefill's, or end its answer at once."""
        token, missing = self._loads.token(request.request_id)
        if token is not None:
            compat.set_last_prompt_token(request, token)
        elif missing:
            log.warning("P2pConnector: request %s cannot continue: %s", request.request_id, missing)
            compat.end_early(request, missing)

    def allocated(self, request: Any, blocks: tuple[int, ...], external: int) -> None:
        """The scheduler gave a request its blocks."""
        request_id = request.request_id
        self._running.add(request_id)
        if self._loads.key_of(request_id) is None:
            return
        known = request.num_prompt_tokens
        tokens = min(self._loads.tokens_of(request_id), known - 1)
        skip = max(0, tokens - external) // self._facts.block_size
        soon = request_id == self._soon
        self._tell(self._loads.allocated(request_id, blocks, skip, external, soon=soon))

    def came(self, request_id: str) -> int | None:
        """See `local.Scheduler`."""
        token = self._loads.came(request_id)
        if token is not None:
            compat.set_last_prompt_token(self._requests[request_id], token)
        return token

    def lost(self, request_id: str, blocks: tuple[int, ...]) -> None:
        """See `local.Scheduler`. The request fails, unless vLLM does that, and nobody else may use the blocks."""
        self._loads.lost(request_id, time.monotonic())
        # vLLM leaves them in the prefix cache if the request is aborted before this step's result is read.
        self._pool.evict_blocks(set(blocks))
        if self._facts.fails:
            return
        request = self._requests.get(request_id)
        if request is not None:
            log.warning("P2pConnector: request %s fails: %s", request_id, LOST)
            compat.fail(request, LOST)

    def finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """A request ended. Returns whether its blocks must be kept, and the parameters for its answer."""
        self._requests.pop(request.request_id, None)
        self._running.discard(request.request_id)
        hold = compat.aborted(request) and self._loads.hold(request.request_id, time.monotonic())
        orders, outcome = self._loads.finished(request.request_id)
        self._tell(orders)
        wish = self._wish(request)
        if isinstance(wish, params.Decode) and outcome:
            return hold, params.answer(wish.key, outcome=outcome)
        if not isinstance(wish, params.Prefill):
            return False, None
        return self._finished_prefill(request, wish)

    def _finished_prefill(self, request: Any, wish: params.Prefill) -> tuple[bool, dict[str, Any] | None]:
        token = compat.first_token(request)
        key = self._plan.key_of(request.request_id)
        settled = key is not None and self._resident is not None and self._resident.station.outgoing.is_settled(key)
        finish = self._plan.finished(request.request_id, token, settled=settled)
        if finish is None:
            return False, None
        self._tell(finish.orders)
        if key is not None:
            self._loads.computed_here(key, token)
        return finish.hold, params.answer(wish.key, blocks=finish.blocks, tokens=request.num_prompt_tokens)

    @staticmethod
    def _wish(request: Any) -> params.Prefill | params.Decode | None:
        try:
            return params.parse(request.kv_transfer_params)
        except params.ParamsError:
            return None  # this was logged when the request came

    # Steps

    def build(self, output: Any) -> list[Order]:
        """Orders that the workers carry out with the coming step."""
        for request_id in output.preempted_req_ids or ():
            self._orders += self._plan.preempted(request_id)
        self._loads.preempted(output.preempted_req_ids or ())
        self._tell(self._loads.expired(time.monotonic()))
        scheduled = output.num_scheduled_tokens
        for new in output.scheduled_new_reqs:
            computed = new.num_computed_tokens + scheduled[new.req_id]
            self._orders += self._plan.scheduled(new.req_id, new.block_ids[0], computed, anew=True)
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            blocks, anew = cached.new_block_ids[index], request_id in cached.resumed_req_ids
            computed = cached.num_computed_tokens[index] + scheduled[request_id]
            self._orders += self._plan.scheduled(request_id, blocks[0] if blocks else (), computed, anew=anew)
        self._idle, self._waited = output.total_num_scheduled_tokens == 0, False
        self._others, self._soon = False, ""
        orders, self._orders = self._orders, []
        return orders

    def output(self, finished_sending: Iterable[str], finished_recving: Iterable[str], mailed: list[Mailed]) -> None:
        """Take the workers' reports after a step."""
        self._loads.inbox.extend(mailed)
        self._plan.released(set(finished_sending))
        for request_id in finished_recving:
            self._loads.drained(request_id)
            request = self._requests.get(request_id)
            if request is not None:
                self._settle_token(request)

    def counted(self) -> dict[str, Any] | None:
        """The counters of this half, if the worker does not report them."""
        return self._stats.take() if self._resident is None else None

    def _tell(self, orders: Iterable[Order]) -> None:
        """Pass an order to the worker: now, if it needs no step and the worker is in this process; else with the next step."""
        for order in orders:
            if self._resident is not None and not isinstance(order, WITH_STEP):
                self._resident.station.do(order)
            else:
                self._orders.append(order)
