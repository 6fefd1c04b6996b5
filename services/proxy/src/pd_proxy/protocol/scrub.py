"""Removes addresses from engines' error messages before a client sees them. Pure.

An engine's message may name any process that it talks to: itself, another engine, a KV port, a metadata store. So everything that
looks like an address is removed, not only the engine's own.
"""

import ipaddress
import re
from collections.abc import Collection
from typing import Any, Final

import msgspec
from msgspec import Raw

_P2P_ID: Final = re.compile(r"(?:cmpl-|chatcmpl-)?___(?:prefill|decode)_addr_[^\s\"',;)]*")
_IP4: Final = re.compile(r"\[?(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)\]?(?::\d{1,5})?")
# At least two colons; ipaddress decides whether it is an address. A text within a text may have escaped the line end before it.
_IP6: Final = re.compile(
    r"(?:(?<![\w:.])|(?<=\\[nrt]))(\[?)([0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]{0,15}){2,8})(?:%[\w.-]*\w)?(\]?)(?::\d{1,5})?(?![\w:])"
)
# A name and a port, but not a date or a line of a file: a port has at least two digits, a name at least one letter.
_HOST: Final = re.compile(
    r"(?<![\w.@-])(?=[\d.-]*[A-Za-z])(?!\d{4}-\d\d-\d\dT)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?:\d{2,5}(?![\w.]*\w)"
)
# In an address with a scheme a name may hold what is in no host's name, as the names of containers do.
_URL: Final = re.compile(r"(?<=://)[\w.-]+:\d{1,5}(?!\w)")
_USER: Final = re.compile(r"(?<=://)[^/\s@\"']+@")


def scrub(text: str, addresses: Collection[str] = ()) -> str:
    """A message without request ids that hold addresses, and without addresses; `addresses` are the engine's own host:port."""
    text = _USER.sub("", _P2P_ID.sub("[request]", text))
    for address in addresses:
        text = text.replace(address, "[engine]")
    for host in {address.rpartition(":")[0] for address in addresses}:
        if "." in host:
            text = re.sub(rf"\[?{re.escape(host)}\]?(?::\d{{1,5}})?", "[engine]", text)
    text = _URL.sub("[address]", text)
    return _HOST.sub("[address]", _IP4.sub("[address]", _IP6.sub(_if_address, text)))


def scrub_json(value: Raw, addresses: Collection[str] = ()) -> Raw:
    """JSON with the addresses removed from every text. Texts are decoded first, because no pattern matches after an escaped `\\n`."""
    return Raw(msgspec.json.encode(scrubbed(msgspec.json.decode(value), addresses)))


def scrubbed(value: Any, addresses: Collection[str]) -> Any:
    """A decoded value with the addresses removed from every text and name in it."""
    if isinstance(value, str):
        return scrub(value, addresses)
    if isinstance(value, list):
        return [scrubbed(item, addresses) for item in value]
    if isinstance(value, dict):
        return {scrub(key, addresses): scrubbed(item, addresses) for key, item in value.items()}
    return value


def _if_address(match: re.Match[str]) -> str:
    try:
        ipaddress.IPv6Address(match[2].rstrip("."))
    except ValueError:
        return match[0]
    return f"[address]{'.' if match[2].endswith('.') else ''}"
