"""The load without its prompts: when each request of `plan.make` would be sent and how long it would be, for pd-plan, which simulates it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pd_contracts.sentences import Clause
from pd_loadgen.prompts import tokenizer
from pd_loadgen.prompts.datasets import Answers, Prompt
from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.tokenizer import TokenCounter
from pd_loadgen.prompts.traces import Arrived
from pd_loadgen.workload import contents
from pd_loadgen.workload.contents import Content
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.pace import pace
from pd_loadgen.workload.plan import PlanError, Source, arrivals
from pd_loadgen.workload.schedule import Arrival


@dataclass(frozen=True, slots=True)
class Outlined:
    """One request.

    Attributes:
        offset: seconds from the start of the window.
        shared: what the prompt begins with, as (name, tokens): parts of equal names are equal, so that a prefix cache may have them.
    """

    offset: float
    input_tokens: int
    output_tokens: int
    shared: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outline:
    """The requests of a load in the order of their arrival; `notes` says what of a file is not among them."""

    requests: list[Outlined]
    notes: list[str | Clause] = field(default_factory=list)


def outline(options: Options, model: str = "") -> Outline:
    """The requests of a load; `model` names the tokenizer that counts a file's texts, as in `plan.make`.

    Raises:
        PlanError: for a load whose times only the server's answers decide, or that has no request; if a file cannot be used.
    """
    paced = options.mode is not Mode.SERVE or pace(options) is Arrival.CLOSED or options.answers is Answers.SERVED
    if paced:
        raise PlanError(
            "these requests are sent when answers arrive, so they cannot be listed beforehand: use an arrival with fixed times"
        )
    source = Source(options, model)
    try:
        offsets, trace = arrivals(options, source)
        return Outline(_lengths(options, source, offsets, trace), source.notes)
    except FileError as error:
        raise PlanError(error.message, **error.holes) from error


def _lengths(options: Options, source: Source, offsets: Sequence[float], trace: Sequence[Arrived]) -> list[Outlined]:
    if source.corpus(len(offsets)) is not None:
        counter = tokenizer.find(options.tokenizer, source.model)
        return _from_file(source.draw(len(offsets), trace), offsets, counter)
    if trace:
        return [Outlined(one.offset, one.input_tokens, one.output_tokens, _blocks(one)) for one in trace]
    if options.turns > 1:
        return _turns(options, offsets)
    return [_made(options, index, offset) for index, offset in enumerate(offsets)]


def _from_file(drawn: Sequence[Content], offsets: Sequence[float], counter: TokenCounter) -> list[Outlined]:
    """A file's prompts come again when all were sent, so each is counted once."""
    counted: dict[int, int] = {}
    found = []
    for offset, content in zip(offsets, drawn, strict=True):
        tokens = content.input_tokens or counted.get(id(content.prompt)) or _counted(content.prompt, counter)
        counted[id(content.prompt)] = tokens
        found.append(Outlined(offset, tokens, content.output_tokens))
    return found


def _counted(prompt: Prompt, counter: TokenCounter) -> int:
    """How many tokens a prompt has; for messages, those of their texts."""
    if isinstance(prompt, str):
        return counter.count(prompt)
    parts = (part if isinstance(part, int) else _said(part.get("content")) for part in prompt)
    return sum(1 if isinstance(part, int) else counter.count(part) for part in parts) or 1


def _said(content: object) -> str:
    """The text of a message, which may be a list of parts."""
    if not isinstance(content, list):
        return str(content or "")
    return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and part.get("text"))


def _blocks(one: Arrived) -> tuple[tuple[str, int], ...]:
    left, blocks = one.input_tokens, []
    for block in one.blocks:
        blocks.append((str(block), min(one.block_tokens, left)))
        left -= one.block_tokens
    return tuple(blocks)


def _made(options: Options, index: int, offset: float) -> Outlined:
    inputs, outputs = contents.made_lengths(options, index)
    prefix = ((f"prefix {index % options.prefixes}", options.prefix_tokens),) if options.prefix_tokens else ()
    return Outlined(offset, inputs + options.prefix_tokens, outputs, prefix)


def _turns(options: Options, offsets: Sequence[float]) -> list[Outlined]:
    """Each turn's prompt is everything that was said before it, and a question."""
    width = contents.conversations(options, len(offsets))
    found = []
    for index, offset in enumerate(offsets):
        turn, number = divmod(index, width)
        said = tuple(
            (f"conversation {number} {what} {before}", tokens)
            for before in range(turn)
            for what, tokens in (("question", options.input_tokens), ("answer", options.output_tokens))
        )
        tokens = sum(part for _, part in said) + options.input_tokens
        question = (f"conversation {number} question {turn}", options.input_tokens)
        found.append(Outlined(offset, tokens, options.output_tokens, (*said, question)))
    return found
