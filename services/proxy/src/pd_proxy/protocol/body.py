"""A request's body, read field by field as far as somebody asks, every other byte left as it came. Pure."""

import codecs
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from pd_proxy.errors import BadRequestError

T = TypeVar("T")
Fields = Mapping[str, Raw]

# A client that could set these would choose where KV goes or comes from, or an id that breaks the connector's grammar.
FORBIDDEN: Final = ("kv_transfer_params", "ec_transfer_params", "request_id")
# Parameters that vLLM hands to its engine unread.
XARGS: Final = "vllm_xargs"
# The field with the sampling parameters, where they are not beside the prompt.
SAMPLING: Final = "sampling_params"

_decoder = msgspec.json.Decoder(dict[str, Raw])
_NULL: Final = b"null"


def encoded(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def encode(fields: Fields) -> bytes:
    return msgspec.json.encode(fields)


def read(body: bytes) -> dict[str, Raw]:
    """The fields of a JSON object.

    Raises:
        BadRequestError: if it is none, or no UTF-8.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        # All of it: the engine would stumble over what lies in a field that is not read here.
        codecs.utf_8_decode(body, "strict", True)
        return _decoder.decode(body)
    except msgspec.ValidationError:
        raise BadRequestError("the request body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the request body is not valid JSON: {error}") from None


def forbid(fields: dict[str, Raw]) -> None:
    """Take out what a client must not set, also where vLLM would hand it to its engine unseen."""
    for name in FORBIDDEN:
        fields.pop(name, None)
    _forbid_within(fields, XARGS)
    sampling = inner(fields, SAMPLING)
    if sampling is not None and _forbid_within(sampling, "extra_args"):
        fields[SAMPLING] = encoded(sampling)


def _forbid_within(fields: dict[str, Raw], name: str) -> bool:
    """Likewise, in an object below; True if there was anything."""
    found = inner(fields, name)
    if found is None or not set(FORBIDDEN) & found.keys():
        return False
    fields[name] = encoded({key: raw for key, raw in found.items() if key not in FORBIDDEN})
    return True


def inner(fields: Fields, name: str) -> dict[str, Raw] | None:
    """An object in a field; None if there is none, which is the engine's to judge."""
    if name not in fields:
        return None
    try:
        return _decoder.decode(fields[name])
    except msgspec.MsgspecError:
        return None


def present(fields: Fields, name: str) -> bool:
    """Whether a field is there, and not null."""
    found = fields.get(name)
    return found is not None and bytes(found) != _NULL


def value(fields: Fields, name: str, type_: type[T]) -> T | None:
    """A field as vLLM would take it: "2" is 2 and 1 is true; read otherwise, it would be routed wrongly.

    Raises:
        BadRequestError: if no engine would take it.
    """
    if not present(fields, name):
        return None
    try:
        return msgspec.convert(msgspec.json.decode(fields[name]), type_, strict=False)
    except (msgspec.MsgspecError, RecursionError):
        kind = {bool: "a boolean", int: "an integer", str: "a string"}[type_]
        raise BadRequestError(f"`{name}` must be {kind}", param=name) from None
