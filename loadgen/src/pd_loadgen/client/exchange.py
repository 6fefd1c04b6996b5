"""A request as it went over the wire: time stamps and bytes, not parsed yet."""

from dataclasses import dataclass, field

from pd_contracts.http_answers import Head
from pd_contracts.records import Failure


@dataclass(slots=True)
class Exchange:
    """Filled while a request runs; times are monotonic seconds.

    Attributes:
        scheduled: when the schedule wanted it sent.
        sent: just before its first byte went to the socket.
        headers_at: when the response's head was complete.
        reads: (time, body bytes) of each read, in order; several events may share a read, and an event several reads.
        failure: what went wrong below the stream; None if the response came whole, whatever its status.
    """

    scheduled: float
    sent: float | None = None
    headers_at: float | None = None
    head: Head | None = None
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    end: float | None = None
    failure: Failure | None = None
