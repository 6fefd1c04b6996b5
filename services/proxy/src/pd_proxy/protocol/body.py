"""A request's body: fields are parsed only when they are needed, and every other byte stays as it came. Pure."""

import codecs
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from pd_proxy.errors import BadRequestError

T = TypeVar("T")
Fields = Mapping[str, Raw]

# With these a client could choose where KV goes or comes from, or an id that the connector cannot parse.
FORBIDDEN: Final = ("kv_transfer_params", "ec_transfer_params", "request_id")
# Parameters that vLLM passes to its engine without checking them.
XARGS: Final = "vllm_xargs"
# The field that holds the sampling parameters, for endpoints that keep them apart from the prompt.
SAMPLING: Final = "sampling_params"

_decoder = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()
# Not strict, as vLLM: "2" is 2, 1 is true.
_values: Final[Mapping[type, msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(kind, strict=False) for kind in (bool, int, str)
}
_KINDS: Final[Mapping[type, str]] = {bool: "a boolean", int: "an integer", str: "a string"}
# Further words and numbers for a boolean.
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", 1.0), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", 0.0), False),
}
_GUARDED: Final = frozenset({*FORBIDDEN, XARGS, SAMPLING})
_NULL: Final = Raw(b"null")


def encoded(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def encode(fields: Fields) -> bytes:
    return _encoder.encode(fields)


def read(body: bytes) -> dict[str, Raw]:
    """The fields of a JSON object.

    Raises:
        BadRequestError: if the body is not a JSON object in UTF-8.
    """
    return read_as(_decoder, body)


def read_as(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """As `read`, with a decoder of some of the fields."""
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        # The whole body is decoded: invalid UTF-8 in a field that is not read here would make the engine fail.
        codecs.utf_8_decode(body, "strict", True)
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise BadRequestError("the request body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the request body is not valid JSON: {error}") from None


# More than any value needs; it could hold a number every other byte, each of which would become an object.
READABLE_BYTES: Final = 64 * 1024
# What `readable` gives for a value that only an engine can judge.
UNREADABLE: Final = object()


def readable(fields: Fields, name: str) -> Any:
    """A field's value in Python's types, None if there is none; UNREADABLE if it is too large, nested too deeply, or a number too large for Python."""
    if name not in fields:
        return None
    if memoryview(fields[name]).nbytes > READABLE_BYTES:
        return UNREADABLE
    try:
        return msgspec.json.decode(fields[name])
    except (msgspec.MsgspecError, RecursionError):
        return UNREADABLE


def forbid(fields: dict[str, Raw]) -> None:
    """Remove fields that a client must not set, also where vLLM would pass them to its engine without checking them."""
    if _GUARDED.isdisjoint(fields):
        return
    for name in FORBIDDEN:
        fields.pop(name, None)
    _forbid_within(fields, XARGS)
    sampling = inner(fields, SAMPLING)
    if sampling is not None and _forbid_within(sampling, "extra_args"):
        fields[SAMPLING] = encoded(sampling)


def _forbid_within(fields: dict[str, Raw], name: str) -> bool:
    """Remove them in a nested object; returns True if there were any."""
    found = inner(fields, name)
    if found is None or not set(FORBIDDEN) & found.keys():
        return False
    fields[name] = encoded({key: raw for key, raw in found.items() if key not in FORBIDDEN})
    return True


def inner(fields: Fields, name: str) -> dict[str, Raw] | None:
    """The object in a field; None if the field holds no object, which the engine judges."""
    if name not in fields:
        return None
    try:
        return _decoder.decode(fields[name])
    except (msgspec.MsgspecError, RecursionError):
        return None


def present(fields: Fields, name: str) -> bool:
    """Whether a field is present and not null."""
    return name in fields and fields[name] != _NULL


def value(fields: Fields, name: str, type_: type[T]) -> T | None:
    """A field's value as vLLM would read it ("2" is 2, 1 is true), so that routing and the engine agree.

    Raises:
        BadRequestError: if engines would refuse the value.
    """
    raw = fields.get(name)
    if raw is None or raw == _NULL:
        return None
    try:
        found: T = _values[type_].decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        odd: Any = _odd(fields, name, type_)
        if odd is None:
            raise BadRequestError(f"`{name}` must be {_KINDS[type_]}", param=name) from None
        return odd  # type: ignore[no-any-return]
    return found


def _odd(fields: Fields, name: str, type_: type) -> bool | int | None:
    """A value in one of the forms that vLLM reads (pydantic) and msgspec does not; None if it is in none of them."""
    found = readable(fields, name)
    if type_ is bool:
        return (
            _BOOLEANS.get(found.lower() if isinstance(found, str) else found)
            if isinstance(found, str | float)
            else None
        )
    return int(found) if type_ is int and isinstance(found, bool) else None
