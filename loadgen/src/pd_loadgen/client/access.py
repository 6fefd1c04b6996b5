"""How a request authenticates: headers, the API key or the password, and which certificates are trusted.

Secrets are read when needed, and kept out of options, manifest and log. A password in a URL goes into the process's environment at once.
"""

import base64
import os
import ssl
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.libraries import plain

KEY_VARIABLE: Final = "LOADGEN_API_KEY"
BASIC_VARIABLE: Final = "LOADGEN_BASIC_AUTH"
# The last word of a header's name that carries a secret: X-Api-Key, X-Auth-Token, Ocp-Apim-Subscription-Key.
_SECRET: Final = frozenset(
    {"authorization", "auth", "key", "apikey", "token", "secret", "password", "cookie", "credential", "credentials"}
)
# The client sets these itself: they describe how it frames the body.
_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-type", "accept-encoding"}
)


INSECURE: Final = "the server's certificate was not checked (--insecure): the answers may come from another server"


class AccessError(OSError):
    """The key or the certificates cannot be read; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Access:
    """The headers of every request, and which certificates https connections trust."""

    headers: Mapping[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None


def context(ca_file: str, *, insecure: bool) -> ssl.SSLContext:
    """A TLS context that trusts the system's certificate authorities, only those of a PEM file, or any certificate.

    Raises:
        AccessError: if the file holds no certificates.
    """
    try:
        made = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        msg = f"the file {ca_file} holds no certificates: {plain(error)}"
        raise AccessError(msg) from error
    if insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["http/1.1"])
    return made


def parse_headers(text: str) -> dict[str, str]:
    """Headers from a JSON object of texts.

    Raises:
        ValueError: with a sentence; also for headers that carry secrets, because options are written to the manifest.
    """
    if not text:
        return {}
    try:
        headers = msgspec.json.decode(text, type=dict[str, str])
    except msgspec.MsgspecError as error:
        msg = f'headers {text!r}: expected a JSON object of texts, {{"X-Name": "value"}} ({plain(error)})'
        raise ValueError(msg) from None
    for name, value in headers.items():
        _check(name, value)
    return headers


def parse_extra(text: str) -> dict[str, Any]:
    """Members to add to every request's body, from a JSON object.

    Raises:
        ValueError: with a sentence.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text else {}
    except msgspec.MsgspecError as error:
        msg = f"extra_body {text!r}: expected a JSON object ({plain(error)})"
        raise ValueError(msg) from None


def headers(text: str, key_file: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The given headers and, with a key in the file or in LOADGEN_API_KEY, `Authorization: Bearer`; with a password, `Basic`.

    Raises:
        AccessError: if the file cannot be read, its content is not a key, or both a key and a password are given.
    """
    source = os.environ if environment is None else environment
    key, password = _key(key_file, source), source.get(BASIC_VARIABLE, "")
    if key and password:
        msg = f"both a key and a password (in the URL or {BASIC_VARIABLE}) are given: a request can carry only one"
        raise AccessError(msg)
    if password:
        return {**parse_headers(text), "Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}
    if not all(33 <= ord(char) < 127 for char in key):
        msg = f"the key in {key_file or KEY_VARIABLE} has characters that a header cannot carry"
        raise AccessError(msg)
    return {**parse_headers(text), **({"Authorization": f"Bearer {key}"} if key else {})}


def keep_secret(secret: str, environment: MutableMapping[str, str] | None = None) -> None:
    """Store the `user:password` of a URL in the environment, where `headers` finds it, also in child processes."""
    if secret:
        (os.environ if environment is None else environment)[BASIC_VARIABLE] = secret


def forget_secret(environment: MutableMapping[str, str] | None = None) -> None:
    """Remove the stored password: requests now go to another server."""
    (os.environ if environment is None else environment).pop(BASIC_VARIABLE, None)


def _key(key_file: str, environment: Mapping[str, str]) -> str:
    if not key_file:
        return environment.get(KEY_VARIABLE, "").strip()
    try:
        key = Path(key_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the key file {key_file} cannot be read: {plain(error)}"
        raise AccessError(msg) from error
    if not key:
        msg = f"the key file {key_file} is empty"
        raise AccessError(msg)
    return key


def _check(name: str, value: str) -> None:
    if name.lower().replace("_", "-").rpartition("-")[2] in _SECRET and name.lower() != "idempotency-key":
        msg = f"header {name}: options are written to the manifest; give a key in {KEY_VARIABLE} or with --api-key-file"
        raise ValueError(msg)
    if name.lower() in _OURS:
        msg = f"header {name} is set by the client itself"
        raise ValueError(msg)
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or not value.isprintable():
        msg = f"header {name!r} has characters that a header cannot carry"
        raise ValueError(msg)
    if not all(ord(char) < 256 for char in value):
        msg = f"header {name!r} has characters that a header cannot carry"
        raise ValueError(msg)
