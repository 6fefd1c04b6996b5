"""Which clients may send requests, and which engines may announce themselves. Pure, except for the file of keys."""

import codecs
import hmac
import ipaddress
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from pd_contracts.ping import Ping
from pd_proxy.engines.registry import PingRefusedError

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 1.0

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class Keys:
    """Clients' keys, from a file that is read again when it changes: a new key needs no restart of the proxy."""

    def __init__(self, path: str, clock: Callable[[], float] = monotonic) -> None:
        """Read the keys; without a path there are none, and clients need none.

        Raises:
            OSError: if the file cannot be read, or holds no key.
        """
        self._path = path
        self._clock = clock
        self._keys = read_keys(path)
        self._version = _version(path)
        self._looked = clock()

    def __bool__(self) -> bool:
        """Whether clients need a key."""
        return bool(self._path)

    def allow(self, authorization: str) -> bool:
        """Whether a header holds one of them as a bearer token."""
        now = self._clock()
        if now - self._looked >= LOOK_INTERVAL_S:
            self._looked = now
            self._read_again()
        return allowed(authorization, self._keys)

    def _read_again(self) -> None:
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self._path)
        except OSError as error:
            # The file is half-written or gone: the keys that were valid stay valid.
            logger.warning("API_KEYS_FILE cannot be read again; the old keys stay valid", extra={"reason": str(error)})
        else:
            logger.info("API_KEYS_FILE was read again", extra={"keys": len(self._keys)})


def _version(path: str) -> tuple[int, ...]:
    """A value that changes when the file is replaced or written. Kubernetes replaces a symbolic link on its path."""
    try:
        found = os.stat(path)  # noqa: PTH116  the numbers, whatever the path is
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_keys(path: str) -> tuple[bytes, ...]:
    """Clients' keys, one per line, without empty lines and lines that begin with #. Without a path there are none.

    Raises:
        OSError: if the file cannot be read, or holds no key although there should be some.
    """
    if not path:
        return ()
    lines = (line.strip() for line in Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).splitlines())
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        msg = f"API_KEYS_FILE: {path} holds no key"
        raise OSError(msg)
    return keys


def allowed(authorization: str, keys: Sequence[bytes]) -> bool:
    """Whether a header holds one of the keys as a bearer token. Takes equally long for every key, so that its time reveals nothing."""
    scheme, _, token = authorization.partition(" ")
    # The server reads headers as Latin-1, so this gives the bytes that were sent.
    given = token.strip(" \t").encode("latin-1", errors="replace")
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches) and scheme.lower() == "bearer"


def check_networks(ping: Ping, networks: Networks) -> None:
    """Accept only pings that announce addresses in the given networks; without networks, accept all.

    Raises:
        PingRefusedError: for other addresses, and for host names, which could resolve to any address.
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
