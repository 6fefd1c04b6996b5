"""Bodies of requests that the proxy passes on without serving them itself: which model they ask for, and nothing in them that says where KV goes. Pure.

vLLM's servers read more than the standard of JSON allows: `NaN`, UTF-16, a byte order mark. What cannot be read here is refused, because
it cannot be searched either.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from pd_proxy.errors import BadRequestError
from pd_proxy.protocol import forms
from pd_proxy.protocol.body import FORBIDDEN, SAMPLING, XARGS, encode, forbid, read, read_as
from pd_proxy.protocol.bounds import check_items
from pd_proxy.protocol.forms import Part

_MULTIPART: Final = "multipart/"
# What separates the parts of a field's name where a server makes objects of a form's fields.
_BETWEEN: Final = re.compile(r"[.\[\]]+")
_NULL: Final = b"null"


class Unread(Struct, frozen=True):
    """What an engine gets; `model` is None if the client names none."""

    model: str | None
    content_type: str
    body: bytes


class _Glance(Struct):
    """The fields that matter here. The others are checked to be JSON, and not kept."""

    model: Raw = Raw()
    kv_transfer_params: Raw = Raw()
    ec_transfer_params: Raw = Raw()
    request_id: Raw = Raw()
    vllm_xargs: Raw = Raw()
    sampling_params: Raw = Raw()

    @property
    def guarded(self) -> bool:
        """Whether there is a field that a client must not set, or that may hold one."""
        return any(map(bytes, msgspec.structs.astuple(self)[1:]))


_glance: Final = msgspec.json.Decoder(_Glance)


def of(content_type: str, body: bytes, items: int) -> Unread:
    """What may go to an engine; `items` is MAX_BODY_ITEMS.

    Raises:
        BadRequestError: if the body is neither a JSON object nor a form.
    """
    if content_type.strip().lower().startswith(_MULTIPART):
        return _form(content_type, body)
    glance = read_as(_glance, body)
    if glance.guarded:
        check_items(body, items)
        fields = read(body)
        forbid(fields)
        body = encode(fields)
    return Unread(_text(glance.model), content_type, body)


def _form(content_type: str, body: bytes) -> Unread:
    parts = [_allowed(part) for part in forms.read(content_type, body) if not _forbidden(part.name)]
    # Of several, vLLM's server takes the last.
    names = [bytes(part.content[:500]).decode(errors="replace") for part in parts if part.name == "model"]
    return Unread(names[-1] if names else None, *forms.write(parts))


def _forbidden(name: str) -> bool:
    return not set(FORBIDDEN).isdisjoint(_BETWEEN.split(name))


def _allowed(part: Part) -> Part:
    """A field without what a client must not set in it: vLLM reads objects in forms from JSON."""
    if part.name not in (XARGS, SAMPLING) or bytes(part.content) == _NULL:
        return part
    try:
        found = msgspec.json.decode(part.content, type=dict[str, Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadRequestError(f"`{part.name}` must be a JSON object", param=part.name) from None
    fields = {part.name: Raw(encode(found))}
    forbid(fields)
    return msgspec.structs.replace(part, content=bytes(fields[part.name]))


def _text(value: Raw) -> str | None:
    try:
        return msgspec.json.decode(value, type=str | None) if bytes(value) else None
    except msgspec.MsgspecError:
        return None  # the engine reports what is wrong with it
