"""When bytes arrived, by the kernel's clock: it stamps each packet as it comes, however busy this process is.

`SO_TIMESTAMPNS` hands that stamp over with the data (socket(7)); for TCP it is the stamp of the last packet in a read. It is on
the wall clock and is brought to the monotonic one, on which all records are. Where there is no such stamp (not Linux, a kernel
that refuses, a clock that was just set) the process's own clock, read after the system call, serves.
"""

import socket
import struct
import sys
import time
from typing import Any, Final

from pd_loadgen.verdict.lag_histogram import LagHistogram

# Not in Python's socket module; the number is that of every Linux architecture Python is built for but parisc and sparc.
_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("qq")
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
CHECK_EVERY_S: Final = 1.0
# A stamp may be this far outside the possible span and is still believed; reading two clocks takes less.
SLACK_S: Final = 0.0005
_TRIES: Final = 5
# Right after the first socket asked for stamps, packets may still come without.
MOST_UNKNOWN: Final = 0.01


def ask(sock: socket.socket) -> bool:
    """Have the kernel stamp what comes in on a socket; False if it does not."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:
        return False  # a sandbox that implements sockets itself
    return True


class Stamps:
    """Brings kernel stamps to the monotonic clock, and counts how late the process was at each read.

    Attributes:
        lags: how late the process was at each read, counted.
        unknown: reads that came without a stamp that can be believed.
    """

    def __init__(self) -> None:
        self._base, self._fraction, self._checked = 0, 0.0, 0.0
        self.begin()

    def begin(self) -> None:
        self.lags, self.unknown = LagHistogram(), 0
        self._compare()

    def of(self, ancillary: list[Any], now: float, before: float) -> float:
        """When the bytes of a read arrived, in monotonic seconds.

        Args:
            ancillary: what `recvmsg` gave besides the data.
            now: the monotonic clock after the read.
            before: a moment at which these bytes had not arrived: when those of the stream's earlier read did, or the request's sending.
        """
        if now - self._checked > CHECK_EVERY_S:
            self._compare()
        if not ancillary:
            self.unknown += 1
            return now
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        at: float = (seconds - self._base) + nanoseconds * 1e-9 - self._fraction
        if not before - SLACK_S <= at <= now + SLACK_S:
            # somebody set the wall clock
            self.unknown += 1
            self._compare()
            return now
        at = min(max(at, before), now)
        self.lags.add(now - at)
        return at

    @property
    def trusted(self) -> bool:
        """True if nearly all reads had a kernel stamp."""
        stamped = self.lags.total
        return stamped > 0 and self.unknown <= stamped * MOST_UNKNOWN

    def _compare(self) -> None:
        """Find wall − monotonic: the quickest of some looks at both, which is right to a tenth of a microsecond."""
        best = 1 << 62
        for _ in range(_TRIES):
            before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
            if after - before < best:
                best = after - before
                # whole seconds apart, because a float of 1.8e9 s has steps of 0.2 µs
                self._base, rest = divmod(wall - (before + after) // 2, 1_000_000_000)
                self._fraction = rest * 1e-9
        self._checked = time.monotonic()
