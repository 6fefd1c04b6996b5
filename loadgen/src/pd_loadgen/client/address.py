"""The server's address as users write it, split into its parts; the password is kept apart. Pure.

Documentation of other clients names bases that end with `/v1`, and whole paths of APIs; browsers and curl take `user:password@`.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pd_contracts.urls import secret_of, without_secret

_PORTS: Final = {"http": 80, "https": 443}
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
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        msg = f"{shown!r} has no usable port or address"
        raise ValueError(msg) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        msg = f"{shown!r} is not an address of the form http://host:port"
        raise ValueError(msg)
    if parts.query or parts.fragment:
        msg = f"{shown.split('?')[0].split('#')[0]!r} has a query, which requests would not carry: remove it"
        raise ValueError(msg)
    return Target(parts.hostname, port, parts.path.rstrip("/"), parts.scheme == "https")


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
