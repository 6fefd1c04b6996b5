"""Whether a piece of an error message is an address or only looks like one. Pure.

`step:100`, `core.py:4512` and `tokens:4096` are written as `kv-store:6379` is. A message that loses the former cannot be understood, and
one that keeps the latter shows the inside of the deployment. What stays unclear counts as an address.
"""

import ipaddress
import re
from typing import Final

# Ports below belong to a few well-known services, and numbers below are mostly counts.
_FIRST_FREE_PORT: Final = 1024
_KNOWN_PORTS: Final = frozenset({22, 53, 80, 111, 389, 443, 636})
_LAST_PORT: Final = 65_535
_LAST_OCTET: Final = 255
_DIGIT: Final = re.compile(r"[0-9]")
# Words that stand before a number, not before a port.
_COUNTED: Final = """
at batch batches block blocks budget byte bytes capacity character characters chars chunk chunks code col column count cuda
cursor depth device dim dimension epoch errno error exit expected experts factor float fp given got head heads height hidden hpu
id ids index indices input int item items iter iteration iterations job kib layer layers len length limit line lines max mib min
ms nheads npu num number offset output page pages param pid port position prompt prompts rank received request requests row rows
samples seconds seed seq seqs sequence sequences sha shape signal size slot slots status step steps stride support supported
supports task tensor tensors thread threads tid time timeout token tokens top total tpu uint used version vocab width window xpu
"""
# The last part of a file's name, where the line's number follows.
_FILES: Final = """
c cc cfg conf cpp cu cuh cxx go h hpp html java jinja js json jsonl log md pb proto py pyi pyx rs safetensors sh so toml ts txt yaml yml
"""
_DOMAINS: Final = """
ai arpa cloud cluster com consul corp dev edu example gov home info intern internal invalid io lan local net org svc test
"""
# What tells that an address follows, whatever it looks like.
_ANNOUNCED: Final = re.compile(
    r"(?:\bhost(?:name)? |\b(?:host|hostname|server|peer|endpoint|address|upstream) ?[=:] ?|\bconnect(?:ed|ing|ion)? (?:to|from|by|with|at) |@)[\"'(\[]*$",
    re.IGNORECASE,
)
# How much of what is before an address may announce it.
ANNOUNCEMENT_CHARS: Final = 40
_counted, _files, _domains = (frozenset(words.split()) for words in (_COUNTED, _FILES, _DOMAINS))


def is_host_and_port(name: str, port: str, before: str = "") -> bool:
    """Whether `name:port` in a message is an address; `before` is what the message says before it."""
    number = int(port)
    if not 0 < number <= _LAST_PORT:
        return False
    if _ANNOUNCED.search(before):
        return True
    *parents, last = name.lower().split(".")
    if last in _files and parents:
        return False
    if "_" in name:
        return False  # a variable; no host's name has one
    if parents:
        return number >= _FIRST_FREE_PORT or number in _KNOWN_PORTS or last in _domains
    word = last.rpartition("-")[2]
    counted = len(last) == 1 or (word.rstrip("0123456789") or word) in _counted
    return last == "localhost" or (number >= _FIRST_FREE_PORT and not counted)


def is_ipv4(text: str) -> bool:
    """Whether four numbers with dots between them can be an address."""
    return all(int(octet) <= _LAST_OCTET for octet in text.split("."))


def is_ipv6(text: str, *, bare: bool) -> bool:
    """Whether hexadecimal numbers with colons between them are an address; `bare`: there is no port.

    Then `::` alone is a word, and so is `a::b`, where one piece of a program is named within another.
    """
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return not bare or _DIGIT.search(text) is not None
