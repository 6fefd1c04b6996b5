"""Sentences that can be translated later: contracts have no catalogues."""


def mark(message: str, /) -> str:
    """The message itself: it is in the catalogues, for what translates it later."""
    return message


class Clause:
    """A sentence of which the words and what fills its holes are kept, for other languages; a hole may be such a sentence or error itself."""

    def __init__(self, message: str, /, **holes: object) -> None:
        self.message, self.holes = message, holes

    def __str__(self) -> str:
        return self.message.format(**self.holes) if self.holes else self.message


class SentenceError(Exception):
    """An error with one sentence for the user; the message and what fills its holes are kept, for other languages."""

    def __init__(self, message: str, /, **holes: object) -> None:
        super().__init__(message.format(**holes) if holes else message)
        self.message, self.holes = message, holes
