"""Errors of the HTTP API."""


class ApiError(Exception):
    """Becomes a JSON answer `{"error": message}` with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
