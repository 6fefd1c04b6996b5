# ruff: noqa: INP001 - scripts, not a package
"""Two questions to local servers."""

import json
import urllib.request
from typing import Any


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  # our own URLs
            return bool(reply.status == 200)
    except OSError:
        return False


def document(url: str) -> Any:
    """The JSON at an address; None if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  # our own URLs
            return json.load(reply)
    except OSError:
        return None
