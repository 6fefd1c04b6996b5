"""Failures of a request, each with the status and the OpenAI error body that its client gets.

`cause` is the label under which `/metrics` counts it. No message may hold an address: messages name engines.
"""

from typing import Any, Final, Self

import msgspec

RETRY_AFTER_S: Final = 3
# Anthropic's error types by status.
MESSAGE_ERRORS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class ProxyError(Exception):
    """A request failed; subclasses say how."""

    status: int = 500
    type: Any = "internal_server_error"
    code: Any = None
    param: Any = None
    cause: str = "internal"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param if param is not None else type(self).param

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer: Retry-After for a 429 or 503."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return error_body(self.message, self.type, self.param, self.code)

    def body_of_message(self) -> bytes:
        """The same in the form of Anthropic's API and vLLM's `/v1/messages`: `{"type": "error", "error": {"type", "message"}}`."""
        fallback = "api_error" if self.status >= 500 else "invalid_request_error"
        error = {"type": MESSAGE_ERRORS.get(self.status, fallback), "message": self.message}
        return msgspec.json.encode({"type": "error", "error": error})


def error_body(message: str, type_: Any, param: Any, code: Any) -> bytes:
    """An error object in OpenAI's form, as JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


class BadRequestError(ProxyError):
    """The client's request is invalid; it was not sent to an engine."""

    status = 400
    type = "invalid_request_error"
    cause = "bad_request"


class AmbiguousLengthError(BadRequestError):
    """It is unclear where this request ends, so nothing that follows it on its connection can be trusted."""

    @property
    def headers(self) -> dict[str, str]:
        """As in the base class, and the connection is closed."""
        return {"Connection": "close"}


class NotDisaggregableError(BadRequestError):
    """The request is valid, but prefill and decode cannot share it, and there is no combined engine."""

    code = "not_disaggregable"
    cause = "not_disaggregable"


class NotStoredError(BadRequestError):
    """The request needs stored responses. An engine stores them in its own memory, where no other engine finds them."""

    code = "responses_not_stored"
    cause = "not_stored"


class NoSuchResponseError(NotStoredError):
    """A stored response was asked for; the proxy stores none."""

    status = 404
    param = "response_id"


class UnauthorizedError(BadRequestError):
    """The client sent no valid API key."""

    status = 401
    code = "invalid_api_key"
    cause = "unauthorized"


class ForbiddenError(BadRequestError):
    """The key does not allow this."""

    status = 403
    type = "permission_error"
    code = "forbidden"
    cause = "forbidden"


class UnknownModelError(BadRequestError):
    """No admitted engine serves the model."""

    status = 404
    code = "model_not_found"
    param = "model"
    cause = "unknown_model"


class HttpError(BadRequestError):
    """The HTTP layer refuses the request: wrong route, wrong method, too large, too slow."""

    cause = "http"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        if status >= 500:
            self.type, self.cause = ProxyError.type, ProxyError.cause
        self.code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(status)


class NoInstanceError(ProxyError):
    """No engine can serve the request now."""

    status = 503
    type = "service_unavailable"
    code = "no_engine_ready"
    cause = "no_instance"


class TooManyRequestsError(ProxyError):
    """MAX_IN_FLIGHT requests are being served."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_requests"
    cause = "too_many_requests"


class SloError(ProxyError):
    """The request would miss TTFT_SLO_MS or TPOT_SLO_MS, and would make others miss them (REJECT=slo)."""

    status = 429
    type = "rate_limit_error"
    code = "slo_not_met"
    cause = "slo"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        """`retry_after_s` is the time after which another attempt may succeed, in seconds."""
        super().__init__(message)
        self._retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """As in the base class, with this error's own time."""
        return {"Retry-After": str(self._retry_after_s)}


class TooManyConnectionsError(ProxyError):
    """One client holds as many connections as it is allowed."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_connections"
    cause = "too_many_connections"


class OutOfDescriptorsError(ProxyError):
    """The proxy has no file descriptors for more connections; no engine is the cause."""

    status = 503
    type = "service_unavailable"
    code = "out_of_descriptors"
    cause = "out_of_descriptors"


class UploadsFullError(ProxyError):
    """Requests that are still arriving hold MAX_UPLOAD_BYTES, and this one had to make room."""

    status = 503
    type = "service_unavailable"
    code = "uploads_full"
    cause = "uploads_full"


class QueuedTooLongError(ProxyError):
    """There was no room for the request's KV within QUEUE_TIMEOUT_S."""

    status = 503
    type = "service_unavailable"
    code = "overloaded"
    cause = "queue_timeout"


class SlowClientError(ProxyError):
    """The client did not read its answer, so its request was ended at the engine, which other clients need."""

    status = 408
    type = "invalid_request_error"
    code = "client_too_slow"
    cause = "slow_client"


class ShuttingDownError(ProxyError):
    """The proxy is shutting down."""

    status = 503
    type = "service_unavailable"
    code = "shutting_down"
    cause = "shutdown"


class UpstreamError(ProxyError):
    """An engine failed."""

    status = 502
    type = "upstream_error"
    code: Any = "bad_gateway"
    cause = "upstream"


class UnreachableError(UpstreamError):
    """The connection to the engine was never made, so it cannot have heard of the request."""

    cause = "unreachable"


class ConnectTimeoutError(UnreachableError):
    """The engine did not accept the connection in time."""

    status = 504
    code = "timeout"
    cause = "connect_timeout"


class PrefillTimeoutError(UpstreamError):
    """Prefill took longer than PREFILL_TIMEOUT_S."""

    status = 504
    code = "timeout"
    cause = "prefill_timeout"


class DisconnectedError(UpstreamError):
    """The engine closed the connection before its answer was whole."""

    cause = "disconnected"

    @classmethod
    def by(cls, name: str) -> Self:
        """The error for an answer of the engine `name` that ends too early."""
        return cls(f"{name} closed the connection before its answer was complete")


class StaleConnectionError(DisconnectedError):
    """The request met a kept connection that the engine had just closed. That says nothing against the engine."""


class BrokenReplyError(UpstreamError):
    """The engine answered 200 with an invalid body."""

    cause = "broken_reply"


class AnswerTooLargeError(UpstreamError):
    """The engine's answer is larger than MAX_ANSWER_BYTES; another engine's would be, too."""

    code = "answer_too_large"
    cause = "answer_too_large"


class NotContinuedError(UpstreamError):
    """The engine could not continue another engine's answer; a third engine may still be able to."""

    cause = "not_continued"


class StalledError(UpstreamError):
    """The engine has stalled."""

    status = 504
    code = "engine_stalled"
    cause = "stalled"


class NotAskedError(StalledError):
    """The engine has stalled, so the request was not sent to it."""

    status = 503


class RestartedError(UpstreamError):
    """The engine process that had the request is gone; at its address is another process, or none."""

    code = "engine_restarted"
    cause = "restarted"


class FailedResponseError(UpstreamError):
    """The engine ended a response before its first token, without saying whether it had begun to run it."""

    cause = "failed_response"


class RefusedError(UpstreamError):
    """The engine answered with an error status instead of running the request.

    A 4xx is about the request and goes to the client unchanged; for a 5xx the client gets 502.
    """

    cause = "refused"

    def __init__(
        self, status: int, message: str, *, fields: dict[str, Any] | None = None, retry_after: str = ""
    ) -> None:
        """`status` is the engine's; `fields` are those of its error object, used for a 4xx; `retry_after` is its header."""
        super().__init__(message)
        self._retry_after = retry_after
        if fields is not None and 400 <= status < 500:
            self.status = status
            self.type = str(fields.get("type") or BadRequestError.type)
            self.param = fields.get("param")
            self.code = fields.get("code")

    @property
    def headers(self) -> dict[str, str]:
        """The engine's own Retry-After, if it sent one."""
        return {"Retry-After": self._retry_after} if self._retry_after else super().headers


class BusyError(RefusedError):
    """The engine is busy, and says when to try again."""

    def __init__(self, message: str, retry_after: str) -> None:
        """`retry_after` is the engine's header, which goes to the client if no other engine serves the request."""
        super().__init__(503, message, retry_after=retry_after)
        self.status = 503
        self.type, self.code = NoInstanceError.type, "overloaded"


class RefusedInStreamError(RefusedError):
    """As `RefusedError`, but reported in the first event of a stream: the engine had accepted the request."""

    cause = "refused_in_stream"
