"""Streams of `/v1/responses` and `/v1/messages`: their events have types, and an event of a particular type ends them. Pure.

vLLM sends `response.created` and `response.in_progress` before its engine has got the request. They are held back until another event
follows, so that here, too, the first bytes mean that decode has the request. Until then, it can be tried again elsewhere or refused with
a status; from then on, it can be aborted at once. The event that ends a stream is held back like `[DONE]` of other endpoints.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw

from pd_contracts import sse
from pd_proxy.errors import BrokenReplyError, FailedResponseError, ProxyError
from pd_proxy.protocol.rewrite import (
    BLOCK_END,
    ERROR_KEY,
    MAX_EVENT_BYTES,
    NOT_JSON,
    OBJECT_END,
    StreamRewriter,
    check_json,
    error_fields,
    holds,
    object_decoder,
    without_params,
)

# A key of every event that holds a part of the output. The others come once for each part, or, like `ping`, may be sent forever.
DELTA_KEY: Final = b'"delta"'
# How many events of a stream are read to find out whether they are JSON.
CHECKED_EVENTS: Final = 32
_SEQUENCE_NUMBER: Final = re.compile(rb'"sequence_number": ?(\d+)')


class TypedRewriter(StreamRewriter):
    """As its base class, for a response; only an event of one of the types in `last` ends the stream."""

    by_chunks = False
    always = b'"type"'
    end = b""
    opening = frozenset({"response.created", "response.queued", "response.in_progress"})
    failures = frozenset({"response.failed", "error"})
    last = frozenset({"response.completed", "response.incomplete"}) | failures
    # What an event that ends the stream must hold; inside a text the quotes are escaped.
    mark = b'"response":'

    _begun = False
    _checked = 0
    _opening = b""
    _newest = b""

    def feed(self, data: bytes) -> bytes:
        """As in the base class.

        Raises:
            BrokenReplyError: also for a stream that sends `[DONE]` before the event that ends it.
        """
        data = super().feed(data)
        if self.end:
            return b""
        if data and (not self._begun or self.mark in data or ERROR_KEY in data):
            blocks = [block + b"\n\n" for block in data.split(BLOCK_END) if block]
            data = b"".join(map(self._event, blocks))
        self._newest = data or self._newest
        if self.done and not self.end:
            raise BrokenReplyError("the engine's stream ended without its last event")
        return data

    def moves(self, block: bytes) -> bool:
        """As in the base class; here it is parts of the output that show progress."""
        return self.done or holds(block, DELTA_KEY)

    @staticmethod
    def is_plain(data: bytes) -> bool:
        """Whether this is one event: the line of its name, which is not `error`, and one line of JSON."""
        if not data.startswith(b"event: ") or data.startswith(b"event: error") or not data.endswith(OBJECT_END):
            return False
        return data.count(b"\n") == 3 and data.find(b"\ndata: {") > 0

    def check_plain(self, data: bytes) -> None:
        """As in the base class, for one event with a name; only for the first ones, because reading one costs a quarter of all the work for it."""
        self._checked += 1
        if self._checked > CHECKED_EVENTS:
            return
        check_json(data[data.find(b"\ndata: ") + len(b"\ndata: ") : -len(BLOCK_END)])

    def check_first(self, first: bytes) -> None:
        """As in the base class; but a response without output is valid, too."""
        if self.failed and not first:
            payload = self.end.partition(b"data:")[2]
            message = error_fields(object_decoder.decode(payload).get("response", payload)).get("message")
            raise FailedResponseError(str(message or "the engine failed"))

    def error_event(self, error: ProxyError) -> bytes:
        """OpenAI's `error` event with the next sequence number."""
        numbers = _SEQUENCE_NUMBER.findall(self._newest)
        body = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
        }
        return sse.encode_event(msgspec.json.encode(body), "error")

    def _event(self, block: bytes) -> bytes:
        """What the client may be sent now that this event has arrived."""
        if self.end:
            return b""
        kind, block = self._cleaned(block)
        if kind in self.last:
            self.done, self.rest, self.end = True, bytearray(), block
            self.failed = kind in self.failures
            block = b""
        elif not self._begun and (not kind or kind in self.opening):
            self._opening += block
            if len(self._opening) > MAX_EVENT_BYTES:
                raise BrokenReplyError("the engine's stream goes on without a part of the output")
            return b""
        if self.failed and not self._begun:
            return b""  # the client can still get a status
        self._begun = True
        opening, self._opening = self._opening, b""
        return opening + block

    def _cleaned(self, block: bytes) -> tuple[str, bytes]:
        """An event's type, and the event without transfer parameters and addresses; the type is empty if it has no data."""
        head, mark, payload = block.partition(b"data:")
        if not mark:
            return "", block
        try:
            fields = object_decoder.decode(payload)
            # An error in the form of other endpoints, which a server in between may have written.
            kind = "error" if "error" in fields else msgspec.json.decode(fields.get("type", b'""'), type=str)
            changed = "response" in fields and self._clean_response(fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BrokenReplyError(NOT_JSON) from None
        if kind == "error":
            return kind, head + mark + b" " + bytes(self.scrubbed(Raw(payload.strip()))) + b"\n\n"
        if changed:
            block = head + mark + b" " + msgspec.json.encode(fields) + b"\n\n"
        return kind, block

    def _clean_response(self, fields: dict[str, Raw]) -> bool:
        """Remove from a response what the client must not see; returns True if there was anything."""
        response = object_decoder.decode(fields["response"])
        changed = without_params(response)
        error = response.get("error")
        if error is not None and bytes(error) != b"null":
            response["error"], changed = self.scrubbed(error), True
        if changed:
            fields["response"] = Raw(msgspec.json.encode(response))
        return changed


class MessageRewriter(TypedRewriter):
    """As its base class, for a message of Anthropic's API."""

    opening = frozenset()
    failures = frozenset({"error"})
    last = frozenset({"message_stop", "error"})
    mark = b'"message_stop"'

    def error_event(self, error: ProxyError) -> bytes:
        """Anthropic's `error` event."""
        return sse.encode_event(error.body_of_message(), "error")
