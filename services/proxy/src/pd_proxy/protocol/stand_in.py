"""A token that stands where prefill's token will stand, in the prompt of a request that decode hears of before. Pure.

Decode's server begins to turn tokens into text from there. So it must be a whole word: behind a special token, or behind half a character,
the text that follows could be written otherwise.
"""

from collections.abc import Hashable


class StandIns:
    """Such a token of each model, learnt from what the model says."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def learn(self, model: Hashable, token: int, text: str) -> None:
        """A model wrote this token, and it became this text."""
        if model not in self._known and text.isascii() and text.strip().isalpha():
            self._known[model] = token

    def of(self, model: Hashable) -> int | None:
        """A token; None as long as none is known."""
        return self._known.get(model)
