"""Records what a client has received of a stream, so that another engine can continue if the first one dies. Pure.

Engines hold text back: bytes that are not a complete character yet, and what may be the beginning of a stop string. Another engine can
continue only after a token whose text the client has completely and, with stop strings, only from a place before which none can have
begun. Text that it repeats is skipped.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from msgspec import Raw

# How a chunk holds its token ids, and that the answer is not finished, as pydantic and the simulator write it.
IDS: Final = b'"token_ids":['
NO_IDS: Final = b'"token_ids":null'
GOES_ON: Final = b'"finish_reason":null'
QUOTE: Final = ord('"')


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the answer, after a number of tokens.

    Attributes:
        begins: characters of text before it.
        usable: how many characters the client must have before another engine may continue from here.
    """

    tokens: int
    begins: int
    usable: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Where another engine has to continue.

    Attributes:
        prompt: token ids of the prompt, as JSON.
        created: when the answer began, as JSON.
        tokens: the token ids of the answer so far.
        skip: how many of the following characters the client already has; `skip_ids`: how many token ids.
    """

    prompt: Raw
    created: bytes
    tokens: list[int]
    skip: int = 0
    skip_ids: int = 0


class Progress:
    """One stream's tokens and text, as they were sent to the client.

    Attributes:
        prompt: token ids of the prompt, as JSON; None until an engine has sent them.
        created: when the answer began, as JSON.
        finished: the last token has been sent to the client.
        asked: the client asked for token ids.
        odd: a parser found something other than text, so no engine can continue.
    """

    def __init__(
        self, *, chat: bool, stops: tuple[str, ...] = (), shows_stop: bool = False, asked: bool = False
    ) -> None:
        """`shows_stop`: a stop string is part of the answer."""
        self.prompt: Raw | None = None
        self.created = b""
        self.finished = False
        self.odd = False
        self.asked = asked
        self._text = b'"content":"' if chat else b'"text":"'
        self._reach = max(map(len, stops), default=1) - 1
        self._withheld = 0 if shows_stop else self._reach
        self._ids = bytearray()
        self._tokens = 0
        self._shown = 0
        self._marks: deque[Mark] = deque([Mark(0, 0, 0)])

    @property
    def in_passing(self) -> bool:
        """Whether only a chunk's tokens need to be read, because no text can be held back for a stop string."""
        return not self._reach

    def begin(self, known: Restart, text: str) -> None:
        """The first token has been sent to the client, from an engine that held nothing back and saw no stop string begin."""
        self.prompt, self.created = known.prompt, known.created
        (token,) = known.tokens
        self._ids += b"%d," % token
        self._tokens, self._shown = 1, len(text)
        self._marks = deque([Mark(1, self._shown, self._shown)])

    def add(self, tokens: list[int], text: str) -> None:
        """A chunk has been sent to the client."""
        for token in tokens:
            self._ids += b"%d," % token
        self._moved(len(tokens), len(text))

    def glance(self, events: bytes) -> bytes:
        """Record the tokens of chunks without parsing all of them; returns the chunks as the client may see them."""
        at = events.find(IDS)
        if at < 0:
            return events
        if events.find(b"\n\n") + 2 < len(events):
            return b"".join(self.glance(event + b"\n\n") for event in events.split(b"\n\n") if event)
        end = events.find(b"]", at)
        ids = events[at + len(IDS) : end]
        self._ids += ids + b","
        self.finished = self.finished or GOES_ON not in events
        text = events.find(self._text) + len(self._text)
        self.odd = self.odd or text < len(self._text)
        self._moved(ids.count(b",") + 1, int(events[text] != QUOTE))
        return events if self.asked else events[:at] + NO_IDS + events[end + 1 :]

    def restart(self) -> Restart | None:
        """Where another engine can continue; None if the prompt's token ids are unknown."""
        if self.prompt is None or self.odd:
            return None
        mark = self._marks[0]
        tokens = [int(part) for part in bytes(self._ids).split(b",")[:-1]]
        skip = self._shown - mark.begins if self._reach else 0
        return Restart(self.prompt, self.created, tokens[: mark.tokens], skip, len(tokens) - mark.tokens)

    def _moved(self, tokens: int, characters: int) -> None:
        self._tokens += tokens
        if not characters:
            return
        self._shown += characters
        begins, usable = self._shown + self._withheld, self._shown + self._reach
        if not self._reach:
            self._marks[0] = Mark(self._tokens, begins, usable)
            return
        self._marks.append(Mark(self._tokens, begins, usable))
        while len(self._marks) > 1 and self._marks[1].usable <= self._shown:
            self._marks.popleft()
