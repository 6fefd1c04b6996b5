"""All changes that are made to an engine's answer on its way to a client. Pure.

There are four: the part of the engine's request id that holds addresses is removed, `kv_transfer_params` are removed, addresses in error
messages are removed, and the number of cached prompt tokens (`usage`) is corrected. The model's output stays as it is, byte for byte.
Streams are not built as objects: the id is removed by `bytes.replace` within whole events, and only events that hold one of the other
keys, or that are not one line of JSON, are built. That the others are JSON objects is checked all the same.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from pd_contracts import sse
from pd_proxy.errors import BrokenReplyError, ProxyError, RefusedInStreamError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.line_ends import CR, LineEnds
from pd_proxy.protocol.scrub import scrub, scrub_json, scrubbed
from pd_proxy.protocol.usage import CACHED_KEYS, Cached, corrected

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
DONE_EVENT: Final = b"data: [DONE]\n\n"
# Chunks without a choice hold no output; the last one may hold the usage. As vLLM and Python's json write it.
NO_CHOICE: Final = (b'"choices":[]', b'"choices": []')
SOME_CHOICE: Final = (b'"choices":[{', b'"choices": [{')
# As any other server may write it.
_SOME_CHOICE: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')
DONE: Final = b"[DONE]"
END_MARKS: Final = (b"data: [DONE]", b"data:[DONE]")

# In JSON a quote inside a text is escaped, so these match keys (or a text that is exactly the word), never part of a text.
KV_KEY: Final = b'"kv_transfer_params"'
ERROR_KEY: Final = b'"error"'
# The field of a non-streamed answer that holds the model's output, by endpoint.
CHOICES: Final = "choices"
RESULT: Final = {
    Endpoint.COMPLETIONS: CHOICES,
    Endpoint.CHAT: CHOICES,
    Endpoint.BATCH: CHOICES,
    Endpoint.GENERATE: CHOICES,
    Endpoint.RESPONSES: "output",
    Endpoint.MESSAGES: "content",
}
# How an event with a JSON object begins. Comments, empty events and pings only keep a connection alive.
EVENT_BEGINNINGS: Final = (b"data: {", b"data:{")
_EVENT: Final = re.compile(rb'(?:\A|\n)data: ?\{(?!"type": ?"ping")')
_DONE: Final = re.compile(rb"(?:\A|(?<=\n))data: ?\[DONE\]\n")
_DATA: Final = b"data:"
# How an event ends whose data is a JSON object.
OBJECT_END: Final = b"}\n\n"
# The line that names an event which reports an error.
_ERROR_NAME: Final = re.compile(rb"event: ?error")
# How the data of a model's event begins. All other data is text of a server.
_OBJECT: Final = b"{"
# The same for streams that are forwarded, which may hold any JSON.
_JSON: Final = (_OBJECT, b"[", b'"')
BLOCK_END: Final = b"\n\n"

object_decoder = msgspec.json.Decoder(dict[str, Raw])
# Reads any JSON to its end without building it.
_any_decoder = msgspec.json.Decoder(Raw)
_text_decoder = msgspec.json.Decoder(str)
NOT_JSON: Final = "an event of the engine's stream is not valid JSON"
NO_OBJECT: Final = "an event of the engine's stream is not a JSON object"
# Between two events of one line each.
_BETWEEN: Final = b"\n\ndata: "


class _Output(Struct):
    """A part of an answer: an object, whatever is in it."""


class _Text(Struct):
    """A choice that holds text."""

    text: str


class _Message(Struct):
    """A choice that holds a message."""

    message: _Output


class _Tokens(Struct):
    """A choice that holds tokens, which may be left out."""

    index: int


_outputs = msgspec.json.Decoder(list[_Output])
# What reads a non-streamed answer's output without building it. Whatever is no part of an answer does not decode.
_OUTPUTS: Final[Mapping[Endpoint, msgspec.json.Decoder[Any]]] = {
    Endpoint.COMPLETIONS: msgspec.json.Decoder(list[_Text]),
    Endpoint.CHAT: msgspec.json.Decoder(list[_Message]),
    Endpoint.BATCH: msgspec.json.Decoder(list[_Message]),
    Endpoint.GENERATE: msgspec.json.Decoder(list[_Tokens]),
    Endpoint.RESPONSES: _outputs,
    Endpoint.MESSAGES: _outputs,
}


class Cleaning(Struct, frozen=True):
    """The changes to the answer of one request.

    Attributes:
        endpoint: the path at the engine.
        secret: removed wherever it occurs.
        cached: prefill's number of cached tokens; None if the answering engine has computed the prompt itself.
    """

    endpoint: Endpoint
    secret: bytes = b""
    cached: Cached | None = None


def checked(endpoint: Endpoint, body: bytes, name: str, addresses: Collection[str] = ()) -> dict[str, Raw]:
    """The fields of a non-streamed 200, after a check that it is an answer; `name` and `addresses` are the engine's.

    Raises:
        BrokenReplyError: if it is not a JSON object, or holds no output of a model.
        RefusedInStreamError: if it is an error.
    """
    try:
        _check_utf8(body)
        fields = object_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        what = "is empty" if not body.strip() else "is not valid JSON"
        raise BrokenReplyError(f"{name}'s answer {what}") from None
    result = RESULT[endpoint]
    if "error" in fields and (result == CHOICES or result not in fields):  # otherwise it is a field of a response
        try:
            raise_error(bytes(scrub_json(Raw(body), addresses)))
        except (msgspec.MsgspecError, RecursionError):
            raise BrokenReplyError(f"{name} answered 200 with an error that cannot be read") from None
    if not _holds(endpoint, fields.get(result, Raw()), nothing=result != CHOICES):
        raise BrokenReplyError(f"{name} answered 200 without `{result}`")
    return fields


def _holds(endpoint: Endpoint, value: Raw, *, nothing: bool) -> bool:
    """Whether a JSON value is a list of parts of an answer. It must not be empty unless `nothing`."""
    try:
        return bool(_OUTPUTS[endpoint].decode(value)) or nothing
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def reply(body: bytes, cleaning: Cleaning, name: str, addresses: Collection[str] = ()) -> bytes:
    """A non-streamed answer, as the client may see it; raises as `checked`."""
    fields = checked(cleaning.endpoint, body, name, addresses)
    changed = without_params(fields)
    if not _is_null(fields.get("error")):  # of a response that failed
        fields["error"], changed = scrub_json(fields["error"], addresses), True
    correct = corrected(cleaning.endpoint, fields, cleaning.cached) if cleaning.cached is not None else None
    if changed or correct is not None:
        body = msgspec.json.encode(correct or fields)
    return body.replace(cleaning.secret, b"") if cleaning.secret else body


def error_fields(body: bytes) -> dict[str, Any]:
    """The error object of an engine's error answer, in any of the forms that vLLM's servers have used; may be empty."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    if not isinstance(answer, dict):
        return {}
    inner = answer.get("error", answer)
    if isinstance(inner, str):
        return {"message": inner}
    if not isinstance(inner, dict):
        return {}
    return {**inner, "message": inner.get("message", inner.get("detail", ""))}


def holds(data: bytes, key: bytes) -> bool:
    """As `key in data`, in a third of the time: `in` first tries to read the key as a number, and formats an error that nobody sees."""
    return data.rfind(key) >= 0


def _ends_with_mark(data: bytes) -> bool:
    """Whether the end mark is the last of these events, and nothing before it looks like one."""
    if not data.endswith(DONE_EVENT):
        return False
    before = len(data) - len(DONE_EVENT)
    return (not before or data.endswith(BLOCK_END, 0, before)) and data.find(DONE, 0, before) < 0


def has_event(block: bytes) -> bool:
    """Whether these events hold more than comments, pings and chunks without a choice."""
    return has_data(block) and (not lacks_choice(block) or has_choice(block))


def has_data(block: bytes) -> bool:
    """Whether an event of this block holds an object."""
    return block.startswith(EVENT_BEGINNINGS) or _EVENT.search(block) is not None


def has_choice(block: bytes) -> bool:
    """Whether an event of this block holds a choice."""
    return holds(block, SOME_CHOICE[0]) or holds(block, SOME_CHOICE[1]) or _SOME_CHOICE.search(block) is not None


def lacks_choice(block: bytes) -> bool:
    """Whether an event of this block has an empty list of choices."""
    return holds(block, NO_CHOICE[0]) or holds(block, NO_CHOICE[1])


def _check_utf8(data: bytes) -> None:
    """Refuse what is no UTF-8, because JSON's decoder does not look into what it leaves raw.

    Raises:
        UnicodeDecodeError: if it is not.
    """
    if not data.isascii():
        data.decode()


def is_json(payload: bytes) -> bool:
    """Whether an event's data is JSON, as Python reads it: engines written in Python may write NaN."""
    try:
        _check_utf8(payload)
        _any_decoder.decode(payload)
    except UnicodeDecodeError:
        return False
    except (msgspec.MsgspecError, RecursionError):
        try:
            json.loads(payload)
        except (ValueError, RecursionError):
            return False
    return True


def is_text(quoted: bytes) -> bool:
    """Whether this is one JSON string."""
    try:
        _text_decoder.decode(quoted)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def check_json(payload: bytes) -> None:
    """Check that an event's data is JSON.

    Raises:
        BrokenReplyError: if it is not.
    """
    if not is_json(payload):
        raise BrokenReplyError(NOT_JSON)


class StreamRewriter:
    """Turns an engine's stream, split at any byte, into whole events that a client may see.

    The end mark is held back (`done`: it has arrived), because the proxy's timing goes before it; what follows it is dropped.
    `failed`: the engine reported an error in an event. `rest` is the received part of an incomplete event. `end` ends the stream for
    the client. `by_chunks`: events that hold neither a key of this module nor `mark` may pass unparsed; `glance`, if set, reads them.
    `put` replaces `secret`. `marked`: the end mark ends the stream. `always`: the key that the model's events hold; all others are a server's.
    """

    by_chunks = True
    marked = True
    always = b'"choices"'
    mark = KV_KEY
    glance: Callable[[bytes], bytes] | None = None
    end = DONE_EVENT

    def __init__(
        self,
        secret: bytes,
        addresses: Iterable[str] = (),
        *,
        endpoint: Endpoint = Endpoint.COMPLETIONS,
        cached: Cached | None = None,
    ) -> None:
        """`addresses` are removed from error messages; the other arguments are as in `Cleaning`."""
        self.cached = cached
        self._endpoint = endpoint
        self.done = False
        self.failed = False
        self.secret = secret
        self.put = b""
        if self.by_chunks and cached is not None:
            self.mark = CACHED_KEYS[0]  # only the last event, with the usage, holds it
        self._addresses = tuple(addresses)
        self.rest = bytearray()
        self._line_ends = LineEnds()

    @property
    def incomplete(self) -> bool:
        """Whether an event is incomplete: a stream that ends here was cut off."""
        return bool(self.rest)

    def moves(self, block: bytes) -> bool:
        """Whether what was fed last shows that the engine makes progress: the end mark, or a choice in these events. An object without one, such as `{"choices":null}`, may be sent forever."""
        return self.done or (has_data(block) and has_choice(block))

    def finish(self) -> bytes:
        """The events that the end of the answer completes, if that ends the stream (`done`): only the empty line behind its end mark is missing."""
        if self.done or not self.rest:
            return b""
        try:
            data = self.feed(b"\n\n")
        except BrokenReplyError:  # a part of an event
            return b""
        return data if self.done else b""

    def check_first(self, first: bytes) -> None:
        """Check the first events, or the end of a stream without events.

        Raises:
            RefusedInStreamError: if the engine failed before its first token, which it reports in a 200 stream.
            BrokenReplyError: if there are no events.
        """
        if not first:
            raise BrokenReplyError("the engine answered 200 with an empty stream")
        raise_first_error(first, self._addresses)

    def error_event(self, error: ProxyError) -> bytes:
        """The event that ends a stream which cannot continue."""
        return sse.encode_event(error.body())

    def feed(self, data: bytes) -> bytes:
        """The events that `data` completes, rewritten; empty if it completes none.

        Raises:
            BrokenReplyError: for an event that is too long, or that must be parsed and is not JSON.
        """
        if self.done:
            return b""
        data = self._completed(data)
        if self.secret:
            data = data.replace(self.secret, self.put)
        if self.marked and _ends_with_mark(data):
            self.done, self.rest = True, bytearray()
            data = data[: -len(DONE_EVENT)]
        return self._rewritten(data) if data else data

    def _completed(self, data: bytes) -> bytes:
        """The events that `data` completes, as the engine wrote them."""
        if data.rfind(CR) >= 0 or self._line_ends.due:
            data = self._line_ends.feed(data)
        if self.rest:
            # Extended in place: an event of many megabytes arrives in hundreds of pieces.
            over = holds(bytes(self.rest[-1:]) + data, BLOCK_END)
            self.rest += data
            if not over:
                self._check_length()
                return b""
            data, self.rest = bytes(self.rest), bytearray()
        return data if data.endswith(b"\n\n") else self._hold_back(data)

    def _rewritten(self, data: bytes) -> bytes:
        # Usually one event, of one line: it is no end mark, and holds nothing that only a server says.
        one = data.find(b"\n") == len(data) - 2 and data.startswith(b"data: {") and data.endswith(OBJECT_END)
        if (
            (not one and not self.is_plain(data))
            or holds(data, KV_KEY)
            or holds(data, ERROR_KEY)
            or (self.cached is not None and self._says_cached(data))
            or not self._by_model(data, one=one)
        ):
            data = self._look_into(data)
        else:
            self.check_plain(data)
        if not one and self.marked and not self.done and holds(data, DONE):
            data = self._hold_back_done(data)
        return data

    @staticmethod
    def is_plain(data: bytes) -> bool:
        """Whether whole events look like one JSON object in one line each: no comments, names or messages of a server, which may hold addresses."""
        if not data.startswith(b"data: {") or not data.endswith(OBJECT_END):
            return False
        return data.count(b"\n") == 2 * data.count(b"}\n\ndata: {") + 2

    def check_plain(self, data: bytes) -> None:
        """Check that these plain events are JSON.

        Raises:
            BrokenReplyError: if one is not.
        """
        for payload in data[len(b"data: ") : -len(BLOCK_END)].split(_BETWEEN):
            check_json(payload)

    def _by_model(self, data: bytes, *, one: bool) -> bool:
        """Whether each of these events holds the key that the model's events hold."""
        return holds(data, self.always) if one else data.count(self.always) >= data.count(BLOCK_END)

    def _hold_back(self, data: bytes) -> bytes:
        end = data.rfind(BLOCK_END) + 2
        end = 0 if end < 2 else end
        self.rest = bytearray(data[end:])
        self._check_length()
        return data[:end]

    def _check_length(self) -> None:
        if len(self.rest) > MAX_EVENT_BYTES:
            raise BrokenReplyError("an event of the engine's stream is too long")

    def _hold_back_done(self, data: bytes) -> bytes:
        found = _DONE.search(data, max(0, data.find(DONE) - len(b"data: ")))
        if found is None:
            return data
        self.done, self.rest = True, bytearray()
        return data[: found.start()]

    def _look_into(self, data: bytes) -> bytes:
        blocks = [block for block in data.split(BLOCK_END) if block.strip(b"\n")]
        # What follows the end mark is dropped, whatever it is.
        last = next((number for number, block in enumerate(blocks, 1) if block in END_MARKS), len(blocks))
        return b"".join(self._clean(block) + BLOCK_END for block in blocks[:last])

    def _says_cached(self, data: bytes) -> bool:
        return self.cached is not None and (holds(data, CACHED_KEYS[0]) or holds(data, CACHED_KEYS[1]))

    def _clean(self, block: bytes) -> bytes:
        lines = [line for line in block.split(b"\n") if line]
        data = [line.removeprefix(_DATA) for line in lines if line.startswith(_DATA)]
        others = [line for line in lines if not line.startswith(_DATA)]
        failed = any(map(_ERROR_NAME.fullmatch, others))
        said = [scrub(line.decode(errors="replace"), self._addresses).encode() for line in others]
        return b"\n".join([*said, _DATA + self._payload(b"\n".join(data), failed=failed)] if data else said)

    def _payload(self, payload: bytes, *, failed: bool) -> bytes:
        """What follows `data:`; `failed`: the event's name says that it is an error."""
        self.failed = self.failed or failed
        bare = payload.lstrip()
        is_object = bare.startswith(_OBJECT)
        if not is_object and (self.always or not bare.startswith(_JSON)):
            if self.always and not failed and bare.rstrip() not in (b"", DONE):
                raise BrokenReplyError(NO_OBJECT)
            return scrub(payload.decode(errors="replace"), self._addresses).replace("\n", " ").encode()
        known = holds(payload, KV_KEY) or holds(payload, ERROR_KEY) or self._says_cached(payload)
        by_server = is_object and not holds(payload, self.always)
        try:
            if not known and not failed and not by_server and b"\n" not in payload:
                (check_json if is_object else _check_utf8)(payload)
                return payload
            _check_utf8(payload)
            fields = object_decoder.decode(self.scrubbed(Raw(payload)) if by_server else payload)
            without_params(fields)
            if self.cached is not None:
                fields = corrected(self._endpoint, fields, self.cached) or fields
            if not _is_null(fields.get("error")):
                self.failed, fields["error"] = True, self.scrubbed(fields["error"])
            elif failed or is_error(fields):
                self.failed = True
                return b" " + bytes(self.scrubbed(Raw(msgspec.json.encode(fields))))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BrokenReplyError(NOT_JSON) from None
        return b" " + msgspec.json.encode(fields)

    def scrubbed(self, error: Raw) -> Raw:
        """An error's JSON without addresses."""
        return scrub_json(error, self._addresses)


class ForwardedRewriter(StreamRewriter):
    """As its base class, for a stream of another kind: its end is that of the connection, so an end mark is an event like the others."""

    marked = False
    always = b""

    def __init__(self, addresses: Iterable[str]) -> None:
        super().__init__(b"", addresses)


def raise_first_error(first: bytes, addresses: Collection[str] = ()) -> None:
    """Raise the error of an engine that failed before its first token: it reports that in a 200 stream, but the client can still get a status.

    Raises:
        RefusedInStreamError: if the first event is an error.
    """
    if not holds(first, ERROR_KEY):
        return
    found = _EVENT.search(first)
    raise_error(first[found.end() - 1 :].split(b"\n", 1)[0] if found else b"", addresses)


def raise_error(payload: bytes, addresses: Collection[str] = ()) -> None:
    """Raise the error that an engine wrote into a 200 instead of an answer, without addresses.

    Raises:
        RefusedInStreamError: if the JSON object is an error.
    """
    if not holds(payload, ERROR_KEY) or not is_error(object_decoder.decode(payload)):
        return
    fields = scrubbed(error_fields(payload), addresses)
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    raise RefusedInStreamError(status, str(fields.get("message") or "the engine refused the request"), fields=fields)


def is_error(fields: dict[str, Raw]) -> bool:
    """Whether an object is an error in one of the forms that vLLM's servers have used: `{"error": …}` or `{"object": "error", …}`."""
    kinds = (bytes(fields.get("object", b"")), bytes(fields.get("type", b"")))
    return ERROR_KEY in kinds or not _is_null(fields.get("error"))


def _is_null(value: Raw | None) -> bool:
    return value is None or bytes(value) == b"null"


def without_params(fields: dict[str, Raw]) -> bool:
    """Remove the connector's parameters from an answer and its choices; returns True if there were any."""
    found = fields.pop("kv_transfer_params", None) is not None
    if "choices" in fields and KV_KEY in bytes(fields["choices"]):
        choices = msgspec.json.decode(fields["choices"], type=list[dict[str, Raw]])
        removed = [choice.pop("kv_transfer_params", None) for choice in choices]
        if any(params is not None for params in removed):
            fields["choices"] = Raw(msgspec.json.encode(choices))
            found = True
    return found
