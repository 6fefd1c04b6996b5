"""The memory that requests hold while they arrive: bounded for all clients together. Pure.

When it is full, the upload makes room that has held the most for the longest, in bytes times seconds: so clients that send large bodies
slowly do not keep out those that send quickly, or little.
"""

from collections.abc import Callable

from pd_proxy.errors import UploadsFullError

Refuse = Callable[[UploadsFullError], None]


class Upload:
    """One request that is arriving; `refused` says why it may hold nothing any more."""

    __slots__ = ("_refuse", "_uploads", "began", "held", "refused")

    def __init__(self, uploads: "Uploads", began: float, refuse: Refuse) -> None:
        """Use `Uploads.begin`."""
        self._uploads = uploads
        self._refuse = refuse
        self.began = began
        self.held = 0
        self.refused: UploadsFullError | None = None

    def holds(self, size: int) -> None:
        """So many bytes of the request have arrived."""
        if self.refused is None:
            self._uploads.grow(self, size - self.held)

    def end(self) -> None:
        """The request has arrived completely, or will not; later calls change nothing."""
        self._uploads.drop(self)

    def refuse(self, error: UploadsFullError) -> None:
        """Take the memory away."""
        self.refused = error
        self.end()
        self._refuse(error)


class Uploads:
    """All requests of this process that are arriving.

    Attributes:
        size: the bytes that they hold.
    """

    def __init__(self, limit: int, clock: Callable[[], float], refused: Callable[[str], None]) -> None:
        """`limit` is in bytes, 0 for none; `refused` is told why an upload was refused."""
        self.size = 0
        self._limit = limit
        self._clock = clock
        self._refused = refused
        self._all: set[Upload] = set()

    def begin(self, refuse: Refuse) -> Upload:
        """A request has begun to arrive. `refuse` is called if it has to make room."""
        upload = Upload(self, self._clock(), refuse)
        self._all.add(upload)
        return upload

    def grow(self, upload: Upload, size: int) -> None:
        """An upload holds so many bytes more."""
        upload.held += size
        self.size += size
        now = self._clock()
        while self._limit and self.size > self._limit:
            heaviest = max(self._all, key=lambda one: (one.held * (now - one.began), one.held))
            error = UploadsFullError(
                f"requests that are still arriving hold {self._limit} bytes (MAX_UPLOAD_BYTES), and this one has held the most for the longest"
            )
            self._refused(error.message)
            heaviest.refuse(error)

    def drop(self, upload: Upload) -> None:
        if upload in self._all:
            self._all.remove(upload)
            self.size -= upload.held
