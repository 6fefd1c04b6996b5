"""One output sequence on its way to the client: text, stop strings, the reason why it ended. Pure."""

from dataclasses import dataclass, field

from pd_simulator.tokenizer import Tokenizer


@dataclass(slots=True)
class StopStrings:
    """Finds stop strings in a stream. What could be the beginning of one is held back, as vLLM does, unless it is part of the answer.

    Attributes:
        part: a stop string is part of the answer (`include_stop_str_in_output`).
        held: the text in which one may still begin; the first `shown` characters of it have been shown.
    """

    stops: tuple[str, ...]
    part: bool = False
    held: str = ""
    shown: int = 0

    def feed(self, text: str, *, last: bool) -> tuple[str, str | None]:
        """Add text; returns what can be shown, and the stop string if one is complete (shown only if it is part of the answer)."""
        self.held += text
        found = [(at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            return self.held[self.shown : at + len(stop) if self.part else at], stop
        reach = max(map(len, self.stops), default=1) - 1
        cut = max(0, len(self.held) - reach)
        end = len(self.held) if last or self.part else cut
        new, self.shown = self.held[self.shown : end], max(0, end - cut)
        self.held = self.held[cut:]
        return new, None


@dataclass(slots=True)
class Output:
    """The output of a choice so far."""

    tokenizer: Tokenizer
    stops: StopStrings
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None

    def add(self, token: int, finish_reason: str | None) -> str:
        """Add a token; returns the text to show for it."""
        self.token_ids.append(token)
        shown, stop = self.stops.feed(self.tokenizer.output_text(token), last=finish_reason is not None)
        self.finish_reason = finish_reason if stop is None else "stop"
        self.stop_reason = stop
        self.text.append(shown)
        return shown
