"""The whole load before the first request: which request is sent when, as the bytes that go to the socket."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec

from pd_contracts.latency import percentile
from pd_contracts.libraries import plain
from pd_contracts.records import schedule_hash
from pd_contracts.sentences import Clause, SentenceError
from pd_loadgen.client.backends import UnsuitableError
from pd_loadgen.prompts import traces
from pd_loadgen.prompts.corpora import Corpus
from pd_loadgen.prompts.datasets import Answers, Dataset, Made
from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.traces import Arrived
from pd_loadgen.workload import contents, schedule
from pd_loadgen.workload.contents import Content
from pd_loadgen.workload.load_options import asked
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.pace import MOST_REQUESTS, MOST_TOKENS, pace
from pd_loadgen.workload.schedule import Arrival
from pd_loadgen.workload.wire import Wire


class PlanError(SentenceError, ValueError):
    """The options make no load; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request; `offset` counts from the start of the window (0 for a warm-up). A group waits for the end of the one before.

    `then` makes the next turn of a conversation from this one's answer; `follow` is how many turns are still to come.
    """

    index: int
    offset: float
    wire: bytes
    output_tokens: int
    warmup: bool = False
    group: int = 0
    follow: int = 0
    then: "Callable[[str], Planned] | None" = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests. Equal hashes mean equal arrivals, lengths and prompts, whatever the target.

    `paced` is true if answers decide when requests are sent: a closed loop, batches, phases. Their offsets mean nothing.
    `requests` holds the first turns only, where the next ones need their answers. `notes` says what of a file is not among them.
    `inputs` and `outputs` are the median and the p95 of the requests' lengths; empty where only answers say them.
    """

    requests: list[Planned]
    warmups: list[Planned]
    hash: str
    paced: bool = False
    notes: list[str | Clause] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many requests there will be."""
        return sum(1 + one.follow for one in self.requests)


@dataclass(frozen=True, slots=True)
class _Slot:
    """When a request is sent, in which group, and its content."""

    offset: float
    group: int
    content: Content


def make(options: Options, model: str, headers: Mapping[str, str] | None = None) -> Plan:
    """Draw schedule and prompts and write every request, so that nothing is computed while the window is open.

    Raises:
        PlanError: if the schedule has no request, a file cannot be used, or the endpoint does not take the prompts.
    """
    try:
        wire, source = Wire(options, model, headers or {}), Source(options, model)
        slots: list[_Slot] = []
        if options.answers is Answers.SERVED:
            requests, fingerprint = _dialogues(options, wire)
        else:
            slots = _slots(options, source)
            fingerprint = _hash(options, slots)
            requests = [
                Planned(index, slot.offset, wire.of(slot.content), slot.content.output_tokens, group=slot.group)
                for index, slot in enumerate(slots)
            ]
        return Plan(
            requests=requests,
            warmups=[
                Planned(index, 0.0, wire.of(content), content.output_tokens, warmup=True)
                for index, content in enumerate(source.draw(options.warmup, warmup=True))
            ],
            hash=fingerprint,
            paced=options.mode is not Mode.SERVE or pace(options) is Arrival.CLOSED,
            notes=source.notes,
            inputs=_spread([slot.content.input_tokens for slot in slots]),
            outputs=_spread([slot.content.output_tokens for slot in slots]),
        )
    except (FileError, UnsuitableError) as error:
        raise PlanError(str(error)) from error


def _spread(lengths: Sequence[int | None]) -> list[int]:
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return []
    return [round(found) for share in (50, 95) if (found := percentile(known, share)) is not None]


class Source:
    """Where the contents of one plan come from; a file is read once, and `notes` says what of it was left out."""

    def __init__(self, options: Options, model: str) -> None:
        self.notes: list[str | Clause] = []
        self._options, self.model = options, model
        self._corpus: Corpus | None = None

    def draw(self, count: int, trace: Sequence[Arrived] = (), *, warmup: bool = False) -> list[Content]:
        """The contents of `count` requests."""
        return contents.draw(self._options, count, trace, warmup=warmup, corpus=self.corpus(count))

    def corpus(self, count: int) -> Corpus | None:
        """The prompts of the data set's file, for `count` requests; None if prompts are made."""
        if count and self._corpus is None:
            self._corpus = contents.read(self._options, self.model, max(count, self._options.warmup))
            self.notes += self._corpus.notes if self._corpus is not None else []
        return self._corpus

    def trace(self) -> list[Arrived]:
        """The requests of the trace; none where there is no trace."""
        options = self._options
        if options.arrival is not Arrival.REPLAY:
            return []
        trace = traces.read(Path(options.trace), scale=options.time_scale, duration=options.duration)
        self.notes += trace.notes
        return trace.requests[: options.requests or None]


def refuse_missing_files(options: Options) -> None:
    """Refuse a file that is not there; what is wrong within one shows only in `make`, which needs the server's model.

    Raises:
        PlanError: naming the file.
    """
    named = [options.trace] if options.arrival is Arrival.REPLAY else []
    named += [options.dataset_path] if options.dataset in (Dataset.JSONL, Dataset.SHAREGPT) else []
    for path in named:
        try:
            Path(path).stat()
        except OSError as error:
            raise PlanError("{path}: {reason}", path=path, reason=plain(error)) from error


def refuse_too_many(trace: Sequence[Arrived]) -> None:
    """Refuse what would not fit into memory, as `conflicts` does for requests that no file names.

    Raises:
        PlanError: saying how much it is.
    """
    tokens = sum(arrived.input_tokens for arrived in trace)
    if len(trace) > MOST_REQUESTS or tokens > MOST_TOKENS:
        raise PlanError(
            "the trace has {count} requests with {tokens} prompt tokens in all, and {most} requests or {most_tokens} tokens are the most that is held in memory: send a part of it, with --duration or --requests",
            count=f"{len(trace):,}",
            tokens=f"{tokens:,}",
            most=f"{MOST_REQUESTS:,}",
            most_tokens=f"{MOST_TOKENS:,}",
        )


def _slots(options: Options, source: Source) -> list[_Slot]:
    if options.mode is Mode.BATCH:
        return _batches(options, source)
    if options.mode is Mode.PHASE_SPLIT:
        return _phases(options, source)
    offsets, trace = arrivals(options, source)
    refuse_too_many(trace)
    made = source.draw(len(offsets), trace)
    return [_Slot(offset, 0, content) for offset, content in zip(offsets, made, strict=True)]


def arrivals(options: Options, source: Source) -> tuple[list[float], list[Arrived]]:
    """When requests are sent in mode serve, with the rows of the trace if there is one.

    Raises:
        FileError: if the trace cannot be used.
        PlanError: if there is no request.
    """
    trace = source.trace()
    if options.arrival is Arrival.REPLAY:
        if not trace:
            left = Clause("{trace}: no request is left to send", trace=options.trace)
            for note in source.notes:
                left = Clause("{finding}; {note}", finding=left, note=note)
            raise PlanError(left.message, **left.holes)
        return [arrived.offset for arrived in trace], trace
    offsets = _offsets(options)
    _refuse_none(options, offsets)
    return offsets, trace


def _refuse_none(options: Options, offsets: Sequence[float]) -> None:
    if not offsets:
        raise PlanError(
            "no request falls into {duration} s at a rate of {rate} per second: raise rate or duration, or change the seed",
            duration=f"{options.duration:g}",
            rate=f"{options.rate:g}",
        )


def _dialogues(options: Options, wire: Wire) -> tuple[list[Planned], str]:
    """Conversations whose answers only the server knows: an arrival is the beginning of one. Also their fingerprint."""
    offsets = _offsets(options)
    _refuse_none(options, offsets)
    threads = contents.threads(options, len(offsets))
    slots = [
        _Slot(offset, 0, Content(said, options.input_tokens, options.output_tokens))
        for offset, thread in zip(offsets, threads, strict=True)
        for said in thread
    ]
    fingerprint = _hash(options, slots, (f"answers served, {options.think_time:g} s".encode(),))
    requests = [
        _turn(wire, options, thread, [], first=number * options.turns, offset=offset)
        for number, (offset, thread) in enumerate(zip(offsets, threads, strict=True))
    ]
    return requests, fingerprint


def _turn(
    wire: Wire, options: Options, thread: Sequence[Made], answers: list[str], *, first: int, offset: float
) -> Planned:
    """The turn of a conversation that follows so many answers."""
    turn = len(answers)
    left = len(thread) - turn - 1
    prompt = contents.dialogue(options, thread[: turn + 1], answers)
    return Planned(
        first + turn,
        offset,
        wire.of(Content(prompt, None, options.output_tokens)),
        options.output_tokens,
        follow=left,
        then=(lambda answer: _turn(wire, options, thread, [*answers, answer], first=first, offset=offset))
        if left
        else None,
    )


def _offsets(options: Options) -> list[float]:
    if pace(options) is Arrival.CLOSED:
        return [0.0] * options.requests
    return schedule.arrivals(
        rate=options.rate,
        duration=options.duration,
        seed=options.seed,
        arrival=options.arrival,
        burstiness=options.burstiness,
        start_rate=options.start_rate,
        steps=options.steps,
        most=options.requests or None,
    )


def _batches(options: Options, source: Source) -> list[_Slot]:
    """Each batch holds one prompt as often as its size; batches have prompts of their own."""
    made = source.draw(len(options.batch_sizes))
    return [
        _Slot(0.0, group, content)
        for group, (size, content) in enumerate(zip(options.batch_sizes, made, strict=True))
        for _ in range(size)
    ]


def _phases(options: Options, source: Source) -> list[_Slot]:
    """All prompts with one output token, then all with theirs, one at a time: two spans of time, each with its energy."""
    made = source.draw(options.requests)
    first = [Content(content.prompt, content.input_tokens, 1) for content in made]
    return [_Slot(0.0, group, content) for group, content in enumerate([*first, *made])]


def _hash(options: Options, slots: Sequence[_Slot], more: Sequence[bytes] = ()) -> str:
    parts = [(slot.offset, slot.content.input_tokens or 0, slot.content.output_tokens) for slot in slots]
    prompts: Iterable[bytes] = (msgspec.json.encode(slot.content.prompt) for slot in slots)
    limits = [f"at most {options.max_concurrency}".encode()] if options.max_concurrency else []
    grouped = [str(slots[-1].group).encode()] if slots[-1].group else []
    wanted = [f"{name}={value}".encode() for name, value in asked(options).items()]
    return schedule_hash(parts, options.seed, chain(prompts, limits, grouped, wanted, more))
