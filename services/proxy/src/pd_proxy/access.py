"""Which clients may send requests, and which engines may announce themselves. Pure, except for the file of keys."""

import codecs
import hashlib
import ipaddress
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from time import monotonic
from typing import Final

from pd_contracts.ping import Ping
from pd_proxy.engines.registry import PingRefusedError

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 1.0
# About 100,000 keys. All requests wait while the file is read, so it must not be arbitrarily large.
MAX_KEYS_BYTES: Final = 4 * 1024 * 1024

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class NoKeyError(OSError):
    """The file of keys can be read, and holds no key."""


class Keys:
    """Clients' keys, from a file that is read again when it changes: a new key needs no restart of the proxy.

    A file that cannot be read says nothing about keys, so those that were valid stay valid. A file that holds none says that
    there are none: nobody is let in. It never means that clients need no key.
    """

    def __init__(self, path: str, clock: Callable[[], float] = monotonic) -> None:
        """Read the keys; without a path there are none, and clients need none.

        Raises:
            OSError: if the file cannot be read, or holds no key.
        """
        self._path = path
        self._clock = clock
        self._version = self._unusable = _version(path)
        self._digests = digests(read_keys(path))
        self._looked = clock()
        self._fault = ""

    def __bool__(self) -> bool:
        """Whether clients need a key."""
        return bool(self._path)

    def allow(self, authorization: str) -> bool:
        """Whether a header holds one of them as a bearer token."""
        self._look()
        return allowed(authorization, self._digests)

    def fault(self) -> str:
        """What is wrong with the file, and what follows; empty if nothing is."""
        if self:
            self._look()
        return self._fault

    def _look(self) -> None:
        now = self._clock()
        # Who writes a file in place empties it first, so nobody should wait for the rest.
        if now - self._looked >= LOOK_INTERVAL_S or not self._digests:
            self._looked = now
            self._read_again()

    def _read_again(self) -> None:
        version = _version(self._path)
        if version == self._version:
            if self._unusable != version:
                self._unusable, self._fault = version, ""
            return
        try:
            keys = read_keys(self._path, at_start=False)
        except NoKeyError:
            self._version = self._unusable = version
            self._digests = frozenset()
            self._told("holds no key: every client is refused")
        except OSError as error:
            # The file is half-written or gone, or the proxy has no descriptor left.
            if version != self._unusable:
                self._unusable = version
                why = error.strerror or "not a file, or too large"
                follows = "the keys read last stay valid" if self._digests else "every client is refused"
                self._told(f"cannot be read ({why}): {follows}", error)
        else:
            self._version = self._unusable = version
            self._digests = digests(keys)
            self._fault = ""
            logger.info("API_KEYS_FILE was read again", extra={"keys": len(keys)})

    def _told(self, fault: str, error: OSError | None = None) -> None:
        self._fault = f"API_KEYS_FILE {fault}"
        logger.warning(self._fault, extra={"reason": str(error)} if error is not None else {})


def _version(path: str) -> tuple[int, ...]:
    """A value that changes when the file is replaced or written. Kubernetes replaces a symbolic link on its path."""
    try:
        found = os.stat(path)  # noqa: PTH116  the numbers, whatever the path is
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def read_keys(path: str, *, at_start: bool = True) -> tuple[bytes, ...]:
    """Clients' keys, one per line, without empty lines and lines that begin with #. Without a path there are none.

    Pipes (`API_KEYS_FILE=<(…)` in a shell) are read at the start only: later, nobody may be writing, and all requests would wait.

    Raises:
        OSError: if the file cannot be read or is too large.
        NoKeyError: if it holds no key.
    """
    if not path:
        return ()
    content = _content(path, at_start=at_start).removeprefix(codecs.BOM_UTF8)
    lines = (line.strip() for line in content.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        msg = f"API_KEYS_FILE: {path} holds no key"
        raise NoKeyError(msg)
    return keys


def _content(path: str, *, at_start: bool) -> bytes:
    # Opening a pipe would otherwise wait for somebody who writes.
    extra = 0 if at_start else os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as file:
        if not at_start and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            msg = f"API_KEYS_FILE: {path} is no longer a file"
            raise OSError(msg)
        content = file.read(MAX_KEYS_BYTES + 1)
    if len(content) > MAX_KEYS_BYTES:
        msg = f"API_KEYS_FILE: {path} is larger than {MAX_KEYS_BYTES} bytes"
        raise OSError(msg)
    return content


def digests(keys: Iterable[bytes]) -> frozenset[bytes]:
    """What is looked up instead of keys. The time of a look-up depends on digests only, so it reveals nothing of a key."""
    return frozenset(hashlib.sha256(key).digest() for key in keys)


def allowed(authorization: str, known: Collection[bytes]) -> bool:
    """Whether a header holds a key with one of these digests as a bearer token."""
    scheme, _, token = authorization.partition(" ")
    # The server reads headers as Latin-1, so this gives the bytes that were sent.
    given = token.strip(" \t").encode("latin-1", errors="replace")
    return hashlib.sha256(given).digest() in known and scheme.lower() == "bearer"


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
