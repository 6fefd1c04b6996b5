"""How many connections clients may hold: all together as many as there are descriptors for, each of them no more than its part. Pure."""

import ipaddress
from collections import Counter
from typing import Final

from pd_proxy.errors import OutOfDescriptorsError, ProxyError, TooManyConnectionsError

# For files, health checks, and connections that are told why they are not served.
RESERVE: Final = 32
# Each client's request needs a connection to an engine, too.
DESCRIPTORS_A_CLIENT: Final = 2
# Unless told otherwise, one client may hold so much of the room: nine tenths, as a gateway that all clients come through needs.
SHARE: Final = 0.9


class Room:
    """Counts connections by client, which is an IPv4 address or an IPv6 network of 64 bits.

    Attributes:
        count: connections that clients hold.
        limit: how many they may hold.
    """

    def __init__(self, descriptors: int, per_client: int) -> None:
        """`descriptors` as in `measure`; `per_client` is a bound, 0 for SHARE of the room."""
        self._per_client = per_client
        self._held: Counter[str] = Counter()
        self.count = 0
        self.measure(descriptors)

    def measure(self, descriptors: int) -> None:
        """There are so many for connections of clients, and for those to engines that their requests need."""
        self.limit = max(1, (descriptors - RESERVE) // DESCRIPTORS_A_CLIENT)

    def take(self, client: str) -> ProxyError | None:
        """Room for one more connection of a client; the error that it gets if there is none."""
        held = self._held[client]
        if self.count >= self.limit:
            return OutOfDescriptorsError(f"the proxy serves {self.count} connections and has no descriptors for more")
        if self._per_client and held >= self._per_client:
            return TooManyConnectionsError(f"you hold {held} connections already (MAX_CONNECTIONS_PER_CLIENT)")
        if not self._per_client and held >= max(1, int(self.limit * SHARE)):
            return OutOfDescriptorsError(f"the proxy has descriptors for {self.limit} connections, and you hold {held}")
        self._held[client] += 1
        self.count += 1
        return None

    def give_back(self, client: str) -> None:
        self.count -= 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]


def client_of(address: str) -> str:
    """Whom a connection from this address belongs to."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))
