"""The server's address as users write it, split into its parts; the password is kept apart. Pure.

Documentation of other clients names bases that end with `/v1`, and whole paths of APIs; browsers and curl take `user:password@`.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from pd_contracts.urls import secret_of, without_secret

_PORTS: Final = {"http": 80, "https": 443}
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f]")
_NUMBERS: Final = re.compile(r"[0-9]+(\.[0-9]+){3}")
# Letters of any script, because such names exist and are looked up in another spelling; services of containers may have a _.
_LABEL: Final = re.compile(r"\w(?:[\w-]{0,61}\w)?")
_VERSION: Final = "/v1"
_APIS: Final = {"/chat/completions": "chat", "/completions": "completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go; `base` is the URL's path without a slash at its end, and `secure` is true for https."""

    host: str
    port: int
    base: str = ""
    secure: bool = False

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address as it was written, in parts.

    Attributes:
        url: the base below which the server has `/v1/…` and its other pages, without secrets.
        version: "/v1" if the address named it; a path of the user's own then follows it.
        endpoint: the API whose whole path was given; empty if none was.
        secret: `user:password` that stood in it; empty if none did.
    """

    url: str
    version: str = ""
    endpoint: str = ""
    secret: str = ""


def parse_url(url: str) -> Target:
    """Split a base URL.

    Raises:
        ValueError: with a sentence about what is wrong with it; it does not repeat a password.
    """
    shown = without_secret(url)
    if _BLANK.search(shown):
        msg = f"{shown!r} contains a blank: an address has the form http://host:port"
        raise ValueError(msg)
    try:
        parts = urlsplit(url)
        port = _PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError:
        msg = f"{shown!r} has no usable port or address"
        raise ValueError(msg) from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.startswith("//"):
        msg = f"{shown!r} is not an address of the form http://host:port"
        raise ValueError(msg)
    if not port:
        msg = f"{shown!r} has port 0, on which nothing listens"
        raise ValueError(msg)
    if not _can_be_host(parts.hostname):
        msg = f"{shown!r} has {parts.hostname!r} as its host, which is neither a name nor an IP address"
        raise ValueError(msg)
    if parts.query or parts.fragment:
        msg = f"{shown.split('?')[0].split('#')[0]!r} has a query, which requests would not carry: remove it"
        raise ValueError(msg)
    return Target(parts.hostname, port, parts.path.rstrip("/"), parts.scheme == "https")


def _can_be_host(host: str) -> bool:
    """Whether a name can be looked up at all; one of four numbers, or with colons, is an IP address or none."""
    if ":" in host or _NUMBERS.fullmatch(host):
        try:
            ip_address(host)
        except ValueError:
            return False
        return True
    labels = host.removesuffix(".").split(".")
    return all(_LABEL.fullmatch(label) for label in labels)


def understand(text: str) -> Address:
    """Split what a user wrote into its parts. Whether the address is valid is checked by `parse_url`."""
    secret = secret_of(text.strip())
    url = without_secret(text.strip()).rstrip("/")
    endpoint = ""
    for path, name in _APIS.items():
        if url.endswith(_VERSION + path):
            url, endpoint = url.removesuffix(path), name
            break
    if not url.endswith(_VERSION):
        return Address(url, secret=secret)
    return Address(url.removesuffix(_VERSION).rstrip("/"), _VERSION, endpoint, secret)
