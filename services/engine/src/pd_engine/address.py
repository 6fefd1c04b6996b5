"""The address under which others reach this container."""

import socket


def own_address(proxy_host: str, proxy_port: int) -> str:
    """The numeric IPv4 address of the interface that leads to the proxy; empty if the proxy's name does not resolve.

    Connecting a datagram socket sends nothing; it only asks the routing table. vLLM's own guess asks for the way to a public
    address and says 0.0.0.0 on a network without a default route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((proxy_host, proxy_port))
            address: str = probe.getsockname()[0]
    except OSError:
        return ""  # the caller refuses an empty address with a sentence of its own
    return address
