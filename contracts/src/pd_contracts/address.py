"""The address at which others reach this process, for engines without a configured address."""

import socket


def own_address(peer_host: str, peer_port: int) -> str:
    """The numeric IPv4 address of the interface that leads to a peer; empty if the peer's name does not resolve.

    Connecting a datagram socket sends nothing; it only asks the routing table. vLLM's own guess asks for the way to a public
    address and says 0.0.0.0 on a network without a default route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer_host, peer_port))
            address: str = probe.getsockname()[0]
    except OSError:
        return ""  # the caller reports it with its own context
    return address
