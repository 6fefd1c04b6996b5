"""The record of one request: times, engines, outcome. The timing stages, the metrics and one log line are made from it."""

import time
from typing import Any, Final, cast

from msgspec import Struct, field
from quart import Request

from pd_contracts.timing import Stages
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import ProxyError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.router import Journey
from pd_proxy.upstream.answers import Stream

CLIENT_LEFT: Final = 499  # as nginx logs it; it is never sent
_KEY: Final = "pd_proxy.trace"


class Trace(Struct):
    """The record of one request. Times are seconds on the monotonic clock; None for stages that were not reached.

    Attributes:
        over: when the engine's answer was complete.
        complete: the client has received all of it.
        handed_off: prefill wrote the first token. `kept_back`: why it did not, if it could have.
        migrations: how often another engine continued the stream.
        journey: its entry in the router's books, if there is a router.
        tokens: output tokens, once the answer is complete; 0 if they were not counted.
    """

    endpoint: Endpoint
    client_id: str = ""
    wants_timing: bool = False
    arrived: float = field(default_factory=time.monotonic)
    dispatched: float | None = None
    prefilled: float | None = None
    first_byte: float | None = None
    over: float | None = None
    uuid: str = ""
    stream: bool = False
    prefill: str = ""
    decode: str = ""
    retries: int = 0
    status: int = 0
    cause: str = ""
    complete: bool = False
    handed_off: bool = False
    kept_back: str = ""
    migrations: int = 0
    answer: Stream | None = None
    journey: Journey | None = None
    tokens: int = 0

    def fail(self, error: ProxyError) -> None:
        """The request ends with this error; a status that has already been sent stays."""
        self.cause = error.cause
        self.status = self.status or error.status

    def left(self) -> None:
        """The client left before the end; another end, if there was one, stays."""
        if not self.complete and not self.cause:
            self.cause = "client_left"
            self.status = self.status or CLIENT_LEFT

    def computed(self, decode: Instance | None = None) -> None:
        """The prompt is computed; the answer is written at `decode`, or where the prompt was."""
        if self.journey is not None:
            self.journey.computed(time.monotonic(), decode)

    def broken_off(self) -> None:
        """The engines have lost the request; what was predicted for it is still told."""
        if self.journey is not None:
            self.journey.ended(time.monotonic())

    def end_journey(self) -> None:
        """The engines have finished with the request, or another attempt begins."""
        journey, self.journey = self.journey, None
        if journey is not None and self.migrations:
            journey.ended(time.monotonic())  # the last engine has written only a part, and the client has seen a pause
        elif journey is not None:
            streamed = self.stream and self.over is not None and self.first_byte is not None
            journey.ended(
                time.monotonic(),
                tokens=self.tokens,
                seconds=cast("float", self.over) - cast("float", self.first_byte) if streamed else 0.0,
            )

    @property
    def server_fault(self) -> bool:
        """Whether the request failed, and not because of the client: an invalid request, a slow reader, or a client that left."""
        return self.cause not in ("", "client_left", "slow_client") and (self.status >= 500 or self.status == 200)

    def stages(self, now: float) -> Stages:
        """The time in each stage, from the arrival until the answer was complete, or until `now`; the stages add up to that time."""
        now = now if self.over is None else self.over
        dispatched = now if self.dispatched is None else self.dispatched
        prefilled = dispatched if self.prefilled is None else self.prefilled
        first = now if self.first_byte is None else self.first_byte
        predicted = None if self.journey is None else self.journey.prediction
        return Stages(
            queue=_ms(dispatched - self.arrived),
            prefill=_ms(prefilled - dispatched),
            kv_and_first_decode=_ms(first - prefilled),
            decode=_ms(now - first),
            prefill_instance=self.prefill,
            decode_instance=self.decode,
            retries=self.retries,
            first_token="prefill" if self.handed_off and not self.kept_back else "",
            first_token_reason=self.kept_back,
            migrations=self.migrations,
            why="" if self.journey is None else self.journey.why,
            predicted_ttft=None if predicted is None else round(predicted.ttft, 3),
            predicted_tpot=None if predicted is None else round(predicted.tpot, 3),
        )


def attach(request: Request, trace: Trace) -> None:
    """Store the trace where error handlers and the connection find it."""
    cast("dict[str, Any]", request.scope)[_KEY] = trace


def attached(request: Request) -> Trace | None:
    """The request's trace; None if it is not a request for tokens."""
    return cast("dict[str, Any]", request.scope).get(_KEY)


def _ms(seconds: float) -> float:
    return round(seconds * 1e6) / 1e3  # several times as fast as rounding to three digits
