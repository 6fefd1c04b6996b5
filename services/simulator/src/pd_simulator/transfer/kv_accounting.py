"""Books on every KV entry that enters or leaves an engine, so that a leak can be seen from outside (`GET /sim/books`)."""

import msgspec


class Books(msgspec.Struct, kw_only=True):
    """Counts of KV entries (one per request) since the start; `held` and `waiting` are as of now.

    For an engine that is sent KV, `received = consumed + freed + held` at every moment.

    Attributes:
        sent: left this engine: pushed and acknowledged, fetched by a peer, or written to the shared folder.
        received: arrived here.
        consumed: arrived here, was used by its request, and was dropped with it.
        freed: arrived here or was kept for a peer, and was dropped unused.
        expired: those of the freed whose lease ran out.
        held: lies here now, for a request that still runs, for a peer, or for no request any more.
        leaked: those of the held whose request has gone, or has not come for SIM_LEAK_S.
        waiting: requests that are blocked until their KV comes.
        waited: requests that had to, since the start.
    """

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    consumed: int = 0
    freed: int = 0
    expired: int = 0
    held: int = 0
    leaked: int = 0
    waiting: int = 0
    waited: int = 0

    def arrive(self, entries: bytes) -> None:
        self.received += 1
        self.received_bytes += len(entries)

    def leave(self, entries: bytes) -> None:
        self.sent += 1
        self.sent_bytes += len(entries)
