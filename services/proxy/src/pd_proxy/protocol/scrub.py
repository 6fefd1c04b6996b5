"""Removes addresses from engines' error messages before a client sees them. Pure.

An engine's message may name any process that it talks to: itself, another engine, a KV port, a metadata store. So everything that
looks like an address is removed, not only the engine's own. What only resembles one stays: see `addresses`.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
from msgspec import Raw

from pd_proxy.protocol.addresses import ANNOUNCEMENT_CHARS, is_host_and_port, is_ipv4, is_ipv6

_HIDDEN: Final = "[address]"
_LOOPBACK: Final = "::1"
_P2P_ID: Final = re.compile(r"(?:cmpl-|chatcmpl-)?___(?:prefill|decode)_addr_[^\s\"',;)]*")
_USER: Final = re.compile(r"(?<=://)[^/\s@\"']+@")
# The version of something may have four numbers, too.
_IP4: Final = re.compile(
    r"(?<!\bversion )(?<!\bv)\[?(?<![\d.])((?:\d{1,3}\.){3}\d{1,3})(?![\d.]*\d)\]?(?::\d{1,5})?", re.IGNORECASE
)
# At least two colons. A text within a text may have escaped the line end before it.
_IP6: Final = re.compile(
    r"(?:(?<![\w:.])|(?<=\\[nrt]))(?<!\w\[)(\[?)(?<!\w\[)([0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]{0,15}){2,8})(?:%[\w.-]*\w)?(\]?)(:\d{1,5})?(?![\w:])"
)
# What is behind an array's name or a comma, and ends with the bracket.
_SLICE: Final = re.compile(r"\d{0,4}::\d{1,4}")
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
# A port has at least two digits, a name at least one letter. A date ends where a time begins, which is no port.
_HOST: Final = re.compile(
    rf"(?<![\w.-])(?=[\d._-]*[A-Za-z])(?!\d{{4}}-\d\d-\d\dT)({_NAME}):(\d{{2,5}})(?![\w.]*\w|:\d)"
)
# As Python's libraries write the address that they connect to.
_PAIR: Final = re.compile(rf"\((['\"])({_NAME})\1, ?(\d{{2,5}})\)")
_KEYWORDS: Final = re.compile(rf"\bhost=(['\"]){_NAME}\1(?=, ?port=\d)")
# In an address with a scheme a name may hold what is in no host's name, as the names of containers do.
_URL: Final = re.compile(r"(?<=://)[\w.-]+:\d{1,5}(?!\w)")
# Names that mean something inside a network only: a server's name without a dot, those of a cluster's services and of a cloud's machines.
_SHORT: Final = re.compile(r"\b((?:https?|tcp|grpc|wss?)://)[\w-]+(?![\w:-]|\.\w)")
_INSIDE: Final = re.compile(
    r"(?<![\w.-])(?:(?:[\w-]+\.)+(?:svc|cluster\.local|(?:ec2|compute)\.internal)|ip(?:-\d{1,3}){4}(?:\.[\w.-]*\w)?)(?::\d{1,5})?(?![\w-]|\.\w)"
)


def scrub(text: str, addresses: Collection[str] = ()) -> str:
    """A message without request ids that hold addresses, and without addresses; `addresses` are the engine's own host:port."""
    text = _USER.sub("", _P2P_ID.sub("[request]", text))
    for address in addresses:
        text = re.sub(rf"(?<![\w.-]){re.escape(address)}(?!\d)", "[engine]", text)
    for host in {address.rpartition(":")[0] for address in addresses}:
        if "." in host:
            text = re.sub(rf"\[?(?<![\w.-]){re.escape(host)}(?![\w-]|\.\w)\]?(?::\d{{1,5}})?", "[engine]", text)
    for pattern, put in _PUT:
        text = pattern.sub(put, text)
    return text


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


def _if_ipv4(match: re.Match[str]) -> str:
    return _HIDDEN if is_ipv4(match[1]) else match[0]


def _if_ipv6(match: re.Match[str]) -> str:
    opened, address, closed, port = match[1], match[2].rstrip("."), match[3], match[4]
    if not is_ipv6(address, bare=not (opened and closed and port)):
        return match[0]
    if opened:
        behind = ""
    elif closed and address != _LOOPBACK and _SLICE.fullmatch(address):
        return match[0]
    else:
        behind = closed
    return f"{_HIDDEN}{behind}{'.' if match[2].endswith('.') else ''}"


def _if_host(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - ANNOUNCEMENT_CHARS) : match.start()]
    return _HIDDEN if is_host_and_port(match[1], match[2], before) else match[0]


def _if_pair(match: re.Match[str]) -> str:
    return _HIDDEN if is_host_and_port(match[2], match[3]) else match[0]


# In this order: an address with a scheme is recognised by more than one without.
_PUT: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (_URL, _HIDDEN),
    (_SHORT, rf"\1{_HIDDEN}"),
    (_INSIDE, _HIDDEN),
    (_IP6, _if_ipv6),
    (_IP4, _if_ipv4),
    (_KEYWORDS, rf"host=\1{_HIDDEN}\1"),
    (_PAIR, _if_pair),
    (_HOST, _if_host),
)
