"""The secret part of a URL, `user:password@`, which must not be shown or stored."""

import re
from typing import Final
from urllib.parse import unquote

# The second form is a password that holds one of /?# (a port is digits before the path).
_USER: Final = re.compile(r"(?i)(?<![\w+.-])([a-z][a-z0-9+.-]*://)([^/\s?#]*|[^/\s?#:]*:(?!\d*[/?#])\S*)@")


def without_secret(text: str) -> str:
    """A text without the `user:password@` of any URL in it."""
    return _USER.sub(r"\1", text)


def secret_of(url: str) -> str:
    """The `user:password` of a URL, decoded; empty if it has none."""
    match = _USER.match(url)
    return ":".join(map(unquote, match[2].partition(":")[::2])) if match else ""
