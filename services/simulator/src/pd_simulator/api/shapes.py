"""The answers' JSON as vLLM 0.23.0 writes it, field by field and in its order.

A stream writes thousands of chunks that differ in one string, so the parts around it are encoded once per choice.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pd_contracts.sse import encode_event
from pd_simulator import __version__

FINGERPRINT = f"pd-simulator-{__version__}"


def dumps(value: Any) -> bytes:
    """Compact JSON, as pydantic writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Usage, without the details that vLLM leaves out of streams."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


@dataclass(frozen=True, slots=True)
class Head:
    """The common fields of all chunks of a response; `echo` is what it repeats of its request."""

    response_id: str
    created: int
    model: str
    echo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished output of a response that is not streamed."""

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class Delta:
    """One chunk's content. `None` for ids means that the client did not ask for them."""

    index: int
    text: str
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None


class Shape(ABC):
    """The JSON of one endpoint."""

    def __init__(self, head: Head) -> None:
        self.head = head

    @staticmethod
    @abstractmethod
    def response_id(header: str | None, body: str | None) -> str:
        """The answer's id, by those in the request's header and body."""

    @abstractmethod
    def engine_id(self, prompt: int) -> str:
        """What the engine calls the sequence of the request's `prompt`-th prompt."""

    @abstractmethod
    def full(
        self, choices: list[Choice], usage: dict[str, Any], *, ids: bool, params: dict[str, Any] | None
    ) -> bytes: ...


class ChunkShape(Shape):
    """An endpoint whose streams are chunks of choices."""

    chunk_object: str
    full_object: str
    prefix: str

    @classmethod
    def response_id(cls, header: str | None, body: str | None) -> str:
        """The header's comes first."""
        return f"{cls.prefix}-{header or body or uuid4().hex}"

    @abstractmethod
    def opening(self, index: int, prompt_token_ids: list[int] | None, usage: dict[str, Any] | None) -> bytes:
        """The chunk before the first token of a choice; empty if there is none."""

    @abstractmethod
    def delta(self, delta: Delta) -> dict[str, Any]:
        """The choice object of a chunk."""

    @abstractmethod
    def frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and behind the text's JSON in a chunk without finish reason, ids and usage."""

    def chunk(self, choice: dict[str, Any], **rest: Any) -> bytes:
        """One SSE event with one choice; fields of `rest` that are None are left out."""
        body = {
            **self._head(self.chunk_object),
            "choices": [choice],
            **{k: v for k, v in rest.items() if v is not None},
        }
        return encode_event(dumps(body))

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that was asked for usage: no choices."""
        body = {**self._head(self.chunk_object), "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}
        return encode_event(dumps(body))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.head.response_id, "object": kind, "created": self.head.created, "model": self.head.model}

    def _whole(
        self, rows: list[dict[str, Any]], usage: dict[str, Any], more: dict[str, Any], params: dict[str, Any] | None
    ) -> bytes:
        """A response that is not streamed; `more` stands between usage and the KV's parameters."""
        return dumps(
            {
                **self._head(self.full_object),
                "choices": rows,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": {**usage, "prompt_tokens_details": None},
                **more,
                "kv_transfer_params": params,
            }
        )

    def _cut(self, choice: dict[str, Any]) -> tuple[bytes, bytes]:
        """Cut a chunk whose text is a mark in two."""
        before, _, behind = self.chunk(choice).partition(b'"\x7f"')
        return before, behind


class CompletionShape(ChunkShape):
    """`/v1/completions`."""

    chunk_object = full_object = "text_completion"
    prefix = "cmpl"

    def engine_id(self, prompt: int) -> str:
        """With its number, also of the only one."""
        return f"{self.head.response_id}-{prompt}"

    def opening(self, index: int, prompt_token_ids: list[int] | None, usage: dict[str, Any] | None) -> bytes:  # noqa: ARG002
        """Completions begin with the first token."""
        return b""

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Text, reasons, ids."""
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "prompt_token_ids": delta.prompt_token_ids,
            "token_ids": delta.token_ids,
        }

    def frame(self, index: int) -> tuple[bytes, bytes]:
        return self._cut(self.delta(Delta(index, "\x7f")))

    def full(self, choices: list[Choice], usage: dict[str, Any], *, ids: bool, params: dict[str, Any] | None) -> bytes:
        rows: list[dict[str, Any]] = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": choice.token_ids if ids else None,
                "prompt_logprobs": None,
                "prompt_token_ids": choice.prompt_token_ids if ids else None,
                "routed_experts": None,
            }
            for index, choice in enumerate(choices)
        ]
        return self._whole(rows, usage, {}, params)


class ChatShape(ChunkShape):
    """`/v1/chat/completions`."""

    chunk_object = "chat.completion.chunk"
    full_object = "chat.completion"
    prefix = "chatcmpl"

    def engine_id(self, prompt: int) -> str:  # noqa: ARG002  there is only one
        return self.head.response_id

    def opening(self, index: int, prompt_token_ids: list[int] | None, usage: dict[str, Any] | None) -> bytes:
        """The chunk that says who speaks; it carries no token."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        body = {**self._head(self.chunk_object), "choices": [choice]}
        if usage is not None:
            body["usage"] = usage
        return encode_event(dumps({**body, "prompt_token_ids": prompt_token_ids, "prompt_text": None}))

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Content, reason, ids; the stop reason only at the end."""
        choice = {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return {**choice, "token_ids": delta.token_ids}

    def frame(self, index: int) -> tuple[bytes, bytes]:
        return self._cut(self.delta(Delta(index, "\x7f")))

    def full(self, choices: list[Choice], usage: dict[str, Any], *, ids: bool, params: dict[str, Any] | None) -> bytes:
        """All choices; the prompt's ids stand beside them."""
        rows: list[dict[str, Any]] = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": choice.text,
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": choice.token_ids if ids else None,
                "routed_experts": None,
            }
            for index, choice in enumerate(choices)
        ]
        prompt = {
            "prompt_logprobs": None,
            "prompt_token_ids": choices[0].prompt_token_ids if ids else None,
            "prompt_text": None,
        }
        return self._whole(rows, usage, prompt, params)


class BatchShape(ChatShape):
    """`/v1/chat/completions/batch`: one choice per conversation, and nothing about their KV."""

    def engine_id(self, prompt: int) -> str:
        """With the conversation's number."""
        return f"{self.head.response_id}_{prompt}"

    def full(self, choices: list[Choice], usage: dict[str, Any], *, ids: bool, params: dict[str, Any] | None) -> bytes:  # noqa: ARG002
        """All choices; vLLM leaves the connector's parameters out."""
        return super().full(choices, usage, ids=ids, params=None)
