"""Errors whose message can be translated later: contracts have no catalogues."""


class SentenceError(Exception):
    """An error with one sentence for the user; the message and what fills its holes are kept, for other languages."""

    def __init__(self, message: str, /, **holes: object) -> None:
        super().__init__(message.format(**holes) if holes else message)
        self.message, self.holes = message, holes
