"""One output sequence on its way to the client: text, stop strings, the reason why it ended. Pure."""

from dataclasses import dataclass, field

from pd_simulator.tokenizer import Tokenizer


@dataclass(slots=True)
class StopStrings:
    """Finds stop strings in a stream; what could be the beginning of one is held back, as vLLM does."""

    stops: tuple[str, ...]
    held: str = ""

    def feed(self, text: str, *, last: bool) -> tuple[str, str | None]:
        """Add text; returns what can be shown, and the stop string if one is complete (it is not shown)."""
        self.held += text
        found = [(at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            return self.held[:at], stop
        keep = 0 if last else max(map(len, self.stops), default=1) - 1
        cut = max(0, len(self.held) - keep)
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown, None


@dataclass(slots=True)
class Output:
    """What a choice has so far."""

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
