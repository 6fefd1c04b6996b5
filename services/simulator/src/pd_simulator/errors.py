"""Errors that callers see, in vLLM's shape: `{"error": {"message", "type", "param", "code"}}`."""

import json


class ApiError(Exception):
    """A request cannot be served; carries its HTTP status."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        """`kind` is vLLM's error type, `param` the field of the request that is wrong."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """The JSON body; also what a stream carries as its last event before `[DONE]`."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return json.dumps({"error": error}).encode()


def invalid(message: str, param: str | None = None) -> ApiError:
    """A body that is no request (vLLM: a pydantic validation error)."""
    return ApiError(message, kind="Bad Request", param=param)


def unknown_model(name: str) -> ApiError:
    """A model that this engine does not serve."""
    return ApiError(f"The model `{name}` does not exist.", status=404, kind="NotFoundError", param="model")


def unknown_response(response_id: str) -> ApiError:
    """None is ever stored."""
    msg = f"Response with id '{response_id}' not found."
    return ApiError(msg, status=404, kind="invalid_request_error", param="response_id")


def internal(message: str = "Internal server error") -> ApiError:
    """The engine failed after it had accepted the request."""
    return ApiError(message, status=500, kind="InternalServerError")
