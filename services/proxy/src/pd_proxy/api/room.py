"""How many connections clients may hold: in total as many as there are file descriptors for, and each client no more than its share. Pure."""

import ipaddress
from collections import Counter
from typing import Final

from pd_proxy.errors import OutOfDescriptorsError, ProxyError, TooManyConnectionsError

# Descriptors for files, health checks, and connections that are refused with a reason.
RESERVE: Final = 32
# Each client's request needs connections to engines, too: a pair has two, which may be at work at the same time.
ENGINES_A_CLIENT: Final = 2
# The default share of one client: nine tenths, because all clients may come through one gateway.
SHARE: Final = 0.9


class Room:
    """Counts connections by client, which is an IPv4 address or an IPv6 network of 64 bits.

    Attributes:
        count: connections that clients hold.
        limit: how many they may hold.
    """

    def __init__(self, descriptors: int, per_client: int) -> None:
        """`descriptors` as in `measure`; `per_client` is the most connections of one client, 0 for SHARE of all."""
        self._per_client = per_client
        self._held: Counter[str] = Counter()
        self.count = 0
        self.measure(descriptors)

    def measure(self, descriptors: int) -> None:
        """Set the number of descriptors for clients' connections and for the connections to engines that their requests need."""
        self.limit = max(1, (descriptors - RESERVE) // (1 + ENGINES_A_CLIENT))

    def take(self, client: str) -> ProxyError | None:
        """Count one more connection of a client; returns the error for that client if there is no room."""
        held = self._held[client]
        if self.count >= self.limit:
            return OutOfDescriptorsError(f"the proxy serves {self.count} connections and has no descriptors for more")
        if self._per_client and held >= self._per_client:
            return TooManyConnectionsError(f"you already hold {held} connections (MAX_CONNECTIONS_PER_CLIENT)")
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
    """The client that a connection from this address belongs to."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))
