"""The `pd` map of `kv_transfer_params`: how a router connects two engines for one request, and what prefill answers.

Prefill's request:  {"pd": {"key": "<hex>", "to": ["10.0.0.2:22001"]}}     `to` may be left out: decode then asks for the KV; optional: "first": "kv"
Prefill's answer:   {"pd": {"key": "<hex>", "blocks": 33, "tokens": 512}}
Decode's request:   {"pd": {"key": "<hex>", "from": "10.0.0.1:21001"}}     optional: "tokens", "token": "follows"
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

FIELD: Final = "pd"
FOLLOWS: Final = "follows"
KV: Final = "kv"


class ParamsError(ValueError):
    """The `pd` map cannot be used; the message says why."""


class Prefill(msgspec.Struct, frozen=True):
    """Compute a prompt's KV for a decode engine.

    Attributes:
        key: names this prompt's KV; used once.
        to: address at which decode listens; None if it is not chosen yet.
        kv_first: the client waits for decode, and so for the KV, rather than for prefill's token.
    """

    key: str
    to: str | None = None
    kv_first: bool = False


class Decode(msgspec.Struct, frozen=True):
    """Continue where prefill ended.

    Attributes:
        key: the key that prefill got.
        source: address at which prefill listens.
        tokens: number of prompt tokens that prefill has; None for all of this prompt (except a token that follows).
        follows: the last prompt token is a placeholder for the token that prefill samples and sends with the KV.
    """

    key: str
    source: str
    tokens: int | None = None
    follows: bool = False


class _Map(msgspec.Struct):
    key: str
    to: str | list[str] | None = None
    source: str | None = msgspec.field(default=None, name="from")
    tokens: int | None = None
    token: str | None = None
    first: str | None = None


def parse(kv_transfer_params: Mapping[str, Any] | None) -> Prefill | Decode | None:
    """What a request's `kv_transfer_params` ask for; None if they are not for this connector.

    Raises:
        ParamsError: if they are for this connector and cannot be used.
    """
    if not kv_transfer_params or kv_transfer_params.get(FIELD) is None:
        return None
    try:
        found = msgspec.convert(kv_transfer_params[FIELD], _Map)
    except msgspec.ValidationError as error:
        raise ParamsError(str(error)) from error
    if not found.key or len(found.key) > 200:
        msg = "`key` must have 1 to 200 characters"
        raise ParamsError(msg)
    if found.source is None:
        to = found.to[0] if isinstance(found.to, list) and found.to else found.to or None
        if found.first not in (None, KV):
            msg = f"`first` may be {KV!r}, not {found.first!r}"
            raise ParamsError(msg)
        return Prefill(found.key, address(to) if isinstance(to, str) else None, kv_first=found.first is not None)
    if found.token not in (None, FOLLOWS):
        msg = f"`token` may be {FOLLOWS!r}, not {found.token!r}"
        raise ParamsError(msg)
    if found.tokens is not None and found.tokens < 1:
        msg = f"`tokens` is {found.tokens}"
        raise ParamsError(msg)
    return Decode(found.key, address(found.source), found.tokens, follows=found.token is not None)


def address(text: str) -> str:
    """`host:port`, checked.

    Raises:
        ParamsError: for anything else.
    """
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        msg = f"an address must be host:port, not {text!r}"
        raise ParamsError(msg)
    return text


def of_rank(base: str, rank: int) -> str:
    """The address of a rank of an engine: the engine's port plus the rank's number."""
    host, _, port = base.rpartition(":")
    return f"{host}:{int(port) + rank}"


def split(text: str) -> tuple[str, int]:
    """Host and port; an IPv6 address loses its brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def kv_key(key: str, token_ids: Iterable[int], extras: Iterable[str] = ()) -> str:
    """The name of a prompt's KV between engines: the router's key, and a digest of the prompt.

    With the digest, KV is never used for another prompt than its own, even if a router mixes keys up, and several prompts of
    one request get separate names. `extras` is everything else that the KV depends on, such as images and the LoRA adapter.
    """
    digest = hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=8)
    for extra in extras:
        digest.update(b"\0" + extra.encode())
    return f"{key}.{digest.hexdigest()}"


def answer(key: str, **found: Any) -> dict[str, Any]:
    """The `kv_transfer_params` of a response."""
    return {FIELD: {"key": key, **found}}
