"""What every server protocol provides: the body of a request, and a reader for each response stream. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from pd_loadgen.prompts.datasets import Prompt

# An engine that aborts a request may end its stream normally and report it only in the finish reason.
_GIVEN_UP: Final = frozenset({"abort", "aborted", "error", "cancelled", "canceled"})


class UnsuitableError(ValueError):
    """The protocol cannot carry this prompt or option; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; a temperature of 0 is greedy. Zero top_k, min_p and penalty 1 are not sent."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def chosen(self) -> dict[str, float]:
        """What differs from a server's neutral values, by the names that all protocols share."""
        values: dict[str, float] = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        neutral: dict[str, float] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        return {name: value for name, value in values.items() if value != neutral[name]}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for besides its prompt; `extra` is merged into the body last."""

    model: str
    output_tokens: int
    ignore_eos: bool = False
    return_token_ids: bool = False
    sampling: Sampling = Sampling()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What one chunk says; a struct, because one is made of each chunk, and these are made in a third of a dataclass's time.

    Attributes:
        tokens: how many tokens it certainly carries.
        exact: the server itself reported this number.
        blank: output without text; whether it is a token shows only in the usage.
        text: generated text.
        token_ids: ids of the tokens, where the server sends them.
        error: the server's message, if the chunk reports one.
        last: the chunk is the stream's end mark.
        closing: the chunk says that the answer is over: it has a finish reason, or it is the usage alone.
    """

    tokens: int = 0
    exact: bool = False
    blank: bool = False
    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    last: bool = False
    closing: bool = False


class Reader(Protocol):
    """Reads one stream; may remember what came before."""

    def read(self, data: str) -> Delta:
        """Read one event's data. Raises msgspec.MsgspecError if it does not follow this protocol."""
        ...


class Backend(Protocol):
    """A server protocol."""

    @property
    def path(self) -> str:
        """Where requests go, below the base URL."""
        ...

    @property
    def ready_path(self) -> str:
        """What answers 200 once the server can serve, where it has no `/ready`."""
        ...

    @property
    def end_mark(self) -> bool:
        """Whether a complete stream ends with a mark; if not, only the end of the HTTP body shows that it is complete."""
        ...

    @property
    def closes(self) -> bool:
        """Whether a complete answer has a closing chunk (`Delta.closing`) before the end mark. A proxy may send the end mark after a cut."""
        ...

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request. Raises UnsuitableError."""
        ...

    def reader(self) -> Reader: ...


def given_up(reason: str | None) -> str:
    """What is wrong with an answer that ended for this reason; empty if nothing is."""
    if reason is None or reason.lower() not in _GIVEN_UP:
        return ""
    return f"the engine aborted the request (finish reason {reason})"


def lenient(text: str) -> Any:
    """JSON as servers in Python write it, which may have NaN and Infinity.

    Raises:
        msgspec.DecodeError: if it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def error_text(error: Any) -> str:
    """The message in a server's error, whatever its shape."""
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:500]


def no_messages(prompt: Prompt, name: str) -> list[int] | str:
    """The prompt, if it is a text or token ids.

    Raises:
        UnsuitableError: if it is messages.
    """
    if isinstance(prompt, str):
        return prompt
    ids = [part for part in prompt if isinstance(part, int)]
    if len(ids) < len(prompt):
        msg = f"{name} takes no messages: use endpoint chat"
        raise UnsuitableError(msg)
    return ids


def only_text(prompt: Prompt, name: str) -> str:
    """The prompt, if it is a text.

    Raises:
        UnsuitableError: if it is token ids or messages.
    """
    if isinstance(prompt, str):
        return prompt
    what = "token ids" if all(isinstance(part, int) for part in prompt) else "messages"
    msg = f"{name} takes only text, and the data set has {what}: choose dataset text or another data set of texts"
    raise UnsuitableError(msg)
