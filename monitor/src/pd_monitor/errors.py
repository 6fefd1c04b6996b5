"""Errors of the HTTP API."""


class ApiError(Exception):
    """Becomes a JSON answer `{"error": message}` with this status."""

    def __init__(self, status: int, message: str) -> None:
        """Say what is wrong, in a sentence for the caller."""
        super().__init__(message)
        self.status = status
