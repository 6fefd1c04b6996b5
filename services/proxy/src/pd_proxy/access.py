"""Who may ask, and who may announce engines. Pure, but for the file of keys, which is read once."""

import hmac
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from pd_contracts.ping import Ping
from pd_proxy.engines.registry import PingRefusedError

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


def read_keys(path: str) -> tuple[bytes, ...]:
    """Clients' keys, one a line; empty lines and lines that begin with # do not count. Without a path there are none.

    Raises:
        OSError: if the file cannot be read, or holds no key although there should be some.
    """
    if not path:
        return ()
    lines = (line.strip() for line in Path(path).read_bytes().splitlines())
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        msg = f"API_KEYS_FILE: {path} holds no key"
        raise OSError(msg)
    return keys


def allowed(authorization: str, keys: Sequence[bytes]) -> bool:
    """Whether a bearer token is one of the keys; takes as long whichever it is, or none."""
    # The server reads headers as Latin-1, so this gives the bytes that were sent.
    given = authorization.removeprefix("Bearer ").encode("latin-1", errors="replace")
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches)


def check_networks(ping: Ping, networks: Networks) -> None:
    """Believe only pings that announce addresses in the given networks; without networks, all.

    Raises:
        PingRefusedError: for others, also for host names, which could lead anywhere.
    """
    if not networks:
        return
    for address in (ping.http_address, ping.zmq_address):
        try:
            host = ipaddress.ip_address(address.rpartition(":")[0])
        except ValueError:
            raise PingRefusedError(
                "network", "announces a host name, and PING_NETWORKS allows addresses only"
            ) from None
        if not any(host in network for network in networks):
            raise PingRefusedError("network", "announces an address outside PING_NETWORKS")
