"""Keeps the engines' load and the traffic for `View`, from events of each request with their times (ms). No I/O, no clock.

Engines are not asked. The time at which an engine will have computed its prompts is estimated from their costs, and corrected whenever one
is computed: `late` is how much later than estimated the last one was. An overdue prompt delays the others. If prompts take less time than
their costs, the costs are lowered (`pace`).
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, inf
from typing import Final

from pd_routing.costs import Costs
from pd_routing.pace import Pace
from pd_routing.predict import beside_prompt_ms, prompt_ms, span_ms, step_ms
from pd_routing.view import EngineLoad, Objectives, Traffic, View

# The traffic is averaged over so many ms; the second is for what bursts should hardly change.
TRAFFIC_MS: Final = 3000.0
LASTING_MS: Final = 20_000.0
RECENT_ANSWERS: Final = 300
# The weight of one answer in the mean length, once there have been many.
ANSWER_WEIGHT: Final = 0.01
# How much one answer changes the correction: down if it missed its TPOT, up if not. In balance, 6% miss it.
CORRECTION_STEP: Final = 0.004
MAY_MISS: Final = 0.06
# The weight of one request in the share of those that are predicted to be late: it is averaged over so many ms, and at least over 50 requests.
LATE_WEIGHT: Final = 0.02
LATE_MS: Final = 5000.0
# Averaged over so many times that time, requests count that are late only until roles have changed, which takes about as long as an answer, or a burst is over.
LASTS: Final = 4
# Overload begins above the first share and ends below the second one: a burst passes, overload stays.
OVERLOAD_FROM: Final = 0.3
OVERLOAD_TO: Final = 0.1
LEAST_CORRECTION: Final = 0.6
MOST_CORRECTION: Final = 1.1


@dataclass(slots=True)
class _Engine:
    kv_tokens: float = inf
    answers: int = 0
    prompts: float = 0.0
    writing: int = 0
    writing_since: float = 0.0  # the sum of the times at which running answers began
    ready_at: float = 0.0
    late: float = 0.0
    waiting: "dict[Ticket, float]" = field(
        default_factory=dict
    )  # prompts that are not known to be computed, with their costs
    work: float = 0.0
    work_at: float = 0.0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request at the engines; `computed_at` is the time at which its prompt was estimated to be computed, `expected` the ms for that by the profile.

    `unseen`: the engine that computes its prompt, if the end of that cannot be seen, and the ms that it counts in the queue there.
    """

    prompt: int
    sequences: int = 1
    computing: int | None = None
    computed_at: float = 0.0
    expected: float = 0.0
    unseen: tuple[int, float] | None = None
    answering: int | None = None
    began: float | None = None


@dataclass(slots=True)
class _Arrivals:
    over: float = TRAFFIC_MS
    since: float | None = None
    at: float = 0.0
    rate: float = 0.0
    tokens: float = 0.0
    work: float = 0.0
    work_squared: float = 0.0

    def fade(self, now: float) -> None:
        kept = exp(-max(0.0, now - self.at) / self.over)
        self.rate, self.tokens, self.work, self.work_squared = (
            kept * value for value in (self.rate, self.tokens, self.work, self.work_squared)
        )
        self.at = max(now, self.at)

    def add(self, now: float, tokens: int, work: float) -> None:
        self.fade(now)
        self.since = now if self.since is None else self.since
        self.rate += 1 / self.over
        self.tokens += tokens / self.over
        self.work += work / self.over
        self.work_squared += work * work / self.over

    def known(self, now: float) -> float:
        """The share of an average that has built up since the first arrival."""
        return 1 - exp(-max(now - self.since, TRAFFIC_MS) / self.over) if self.since is not None else 1.0


@dataclass(slots=True)
class _Answers:
    count: int = 0
    mean: float = Traffic().answer
    recent: deque[int] = field(default_factory=deque)
    ordered: list[int] = field(default_factory=list)

    def add(self, tokens: int) -> None:
        self.count += 1
        self.mean += (tokens - self.mean) * max(1 / self.count, ANSWER_WEIGHT)
        self.recent.append(tokens)
        insort(self.ordered, tokens)
        if len(self.recent) > RECENT_ANSWERS:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]

    def quartile(self) -> float:
        return float(self.ordered[len(self.ordered) // 4]) if self.ordered else self.mean


class Books:
    """The load and traffic of all requests that this proxy has sent. With `share` proxies on the same engines, the others are assumed to send as much."""

    def __init__(self, costs: Costs, objectives: Objectives, *, share: int = 1) -> None:
        self.costs = self._profile = costs
        self._pace = Pace(costs.margin)
        self.objectives = objectives
        self.correction = 1.0
        self.overload = False
        self._late_share = self._lasting_share = 0.0
        self._worked_at = 0.0  # when a request came, was computed or ended last
        self._share = share
        self._engines: dict[int, _Engine] = {}
        self._arrivals = _Arrivals()
        self._lasting = _Arrivals(LASTING_MS)
        self._answers = _Answers()

    def arrived(self, now: float, prompt: int) -> None:
        self._rested(now)
        work = self.costs.beside_with_launch_ms(prompt)
        for arrivals in (self._arrivals, self._lasting):
            arrivals.add(now, prompt, work)

    def predicted(self, *, late: bool, passing: bool = False) -> None:
        """Whether the request that has just arrived is predicted to miss an objective; `passing`: only until roles have changed or a burst is over."""
        rate = self._arrivals.rate
        weight = min(LATE_WEIGHT, 1 / (LATE_MS * rate) if rate else 1.0)
        self._late_share += weight * ((late and (self.overload or not passing)) - self._late_share)
        self._lasting_share += weight / LASTS * (late - self._lasting_share)
        self._look_for_overload()

    def _rested(self, now: float) -> None:
        """Time in which the engines had nothing to do counts like requests in time: after overload, the next request may come much later."""
        if not any(book.answers or book.waiting or book.ready_at > now for book in self._engines.values()):
            idle = max(0.0, now - self._worked_at)
            self._late_share *= exp(-idle / LATE_MS)
            self._lasting_share *= exp(-idle / (LASTS * LATE_MS))
            self._look_for_overload()
        self._worked_at = now

    def _look_for_overload(self) -> None:
        if self.overload:
            if self._late_share < OVERLOAD_TO:
                self.overload, self._lasting_share = False, self._late_share
        else:
            share = max(self._late_share, self._lasting_share)
            if share > OVERLOAD_FROM:
                self.overload, self._late_share = True, share

    @property
    def pace(self) -> float:
        """What the profile's costs of prompts are multiplied by."""
        return self._pace.factor

    def view(self, now: float) -> View:
        traffic = self.traffic(now)
        span = span_ms(traffic, self.objectives.tpot)
        loads = {number: self._load(engine, now, traffic, span) for number, engine in self._engines.items()}
        return View(loads, traffic, self.objectives, self.correction, self.overload)

    def traffic(self, now: float) -> Traffic:
        seen, lasting, share = self._arrivals, self._lasting, self._share
        seen.fade(now)
        lasting.fade(now)
        return Traffic(
            answer=self._answers.mean,
            short_answer=self._answers.quartile(),
            rate=share * seen.rate,
            tokens=share * seen.tokens,
            work=share * seen.work,
            work_squared=share * seen.work_squared,
            lasting_rate=share * lasting.rate / lasting.known(now),
            lasting_tokens=share * lasting.tokens / lasting.known(now),
        )

    def sent(
        self, now: float, engine: int, prompt: int, *, answers: bool, sequences: int = 1, watched: bool = True
    ) -> Ticket:
        """A request was sent to an engine, which computes its prompt and, if `answers`, decodes.

        `watched`: its first token can be observed, because the answer is a stream.
        """
        traffic, book = self.traffic(now), self._engines.setdefault(engine, _Engine())
        span = span_ms(traffic, self.objectives.tpot)
        load, begins = self._load(book, now, traffic, span), now - book.late >= book.ready_at
        took = prompt_ms(self.costs, load, prompt)
        book.work, book.work_at = _faded(book, now, span) + self.costs.beside_with_launch_ms(prompt), now
        ticket = Ticket(prompt, sequences, computing=engine)
        ticket.computed_at = book.ready_at = max(now - book.late, book.ready_at) + self._share * took
        if answers:
            self._answering(ticket, engine)
        if watched:
            book.waiting[ticket] = self._share * took
            # In a queue, the next prompt's step follows at once.
            expected = took + (beside_prompt_ms(self.costs, load) if begins else 0.0)
            ticket.expected = expected / self._pace.factor
        else:
            ticket.computing, ticket.unseen = None, (engine, self._share * took)
            self._begin(ticket.computed_at, ticket)
        return ticket

    def computed(self, now: float, ticket: Ticket) -> None:
        """The prompt was computed: prefill has answered, or the first token has arrived."""
        if ticket.computing is None:
            return
        self._worked_at = now
        book = self._engines[ticket.computing]
        before, book.late = book.late, now - ticket.computed_at
        took = book.waiting.pop(ticket, 0.0) + book.late - before
        if self._share == 1 and self._pace.saw(took, ticket.expected):  # other proxies' prompts may not have been there
            self.costs = self._profile.times(self._pace.factor)
        ticket.computing = None
        self._begin(now, ticket)

    def handed_over(self, now: float, ticket: Ticket, engine: int) -> None:
        """This engine decodes the answer, which was not known before."""
        if ticket.answering is not None:
            return
        self._answering(ticket, engine)
        self._begin(now, ticket)

    def ended(self, now: float, ticket: Ticket, tokens: int = 0, tpot: float | None = None) -> None:
        """The request is over; `tokens` is the length of a complete answer, `tpot` its time per output token in ms.

        A prompt whose end could not be seen, and that was estimated to be computed later, leaves the queue.
        """
        self._worked_at = now
        if ticket.unseen is not None:
            number, took = ticket.unseen
            book = self._engines[number]
            book.ready_at -= min(took, max(0.0, ticket.computed_at - (now - book.late)))
        if ticket.computing is not None:
            book = self._engines[ticket.computing]
            book.ready_at -= book.waiting.pop(ticket, 0.0)
        if ticket.answering is not None:
            book = self._engines[ticket.answering]
            book.answers -= ticket.sequences
            book.prompts -= ticket.prompt
            if ticket.began is not None:
                book.writing -= ticket.sequences
                book.writing_since -= ticket.sequences * ticket.began
        ticket.computing = ticket.answering = ticket.began = ticket.unseen = None
        if tokens:
            self._answers.add(tokens // ticket.sequences)
        if tpot is not None and ticket.sequences == 1:
            moved = self.correction + CORRECTION_STEP * (MAY_MISS - (tpot > self.objectives.tpot))
            self.correction = min(MOST_CORRECTION, max(LEAST_CORRECTION, moved))

    def know(self, engines: Mapping[int, float]) -> None:
        """The present engines with the sizes of their KV caches in tokens; others are dropped once they have no requests."""
        for number in [
            n for n, book in self._engines.items() if n not in engines and not book.answers and not book.waiting
        ]:
            del self._engines[number]
        for number, tokens in engines.items():
            self._engines.setdefault(number, _Engine()).kv_tokens = tokens

    def _answering(self, ticket: Ticket, engine: int) -> None:
        book = self._engines.setdefault(engine, _Engine())
        book.answers += ticket.sequences
        book.prompts += ticket.prompt
        ticket.answering = engine

    def _begin(self, now: float, ticket: Ticket) -> None:
        if ticket.answering is not None and ticket.began is None:
            book = self._engines[ticket.answering]
            book.writing += ticket.sequences
            book.writing_since += ticket.sequences * now
            ticket.began = now

    def _load(self, book: _Engine, now: float, traffic: Traffic, span: float) -> EngineLoad:
        share = self._share
        work = _faded(book, now, span)
        answers, prompts = share * book.answers, share * book.prompts
        oldest = next(iter(book.waiting), None)
        late = book.late if oldest is None else max(book.late, now - oldest.computed_at)
        ahead = max(0.0, book.ready_at + late - now)
        room = book.kv_tokens - prompts - answers * traffic.answer
        if not answers:
            return EngineLoad(0, 0.0, ahead, share * work, room)
        pace = step_ms(self.costs, EngineLoad(answers, prompts), traffic) / (1 - min(0.9, work / span))
        written = min((book.writing * now - book.writing_since) / pace, book.writing * traffic.answer)
        return EngineLoad(answers, prompts + share * max(0.0, written), ahead, share * work, room)


def _faded(book: _Engine, now: float, span: float) -> float:
    return book.work * exp(-max(0.0, now - book.work_at) / span) if book.work else 0.0
