"""Turns the engine's tokens into one HTTP response, streamed or whole."""

import asyncio
from collections.abc import Callable
from typing import Any

from pd_contracts.sse import DONE, encode_event
from pd_simulator.api.generation import Generation
from pd_simulator.api.output import Output, StopStrings
from pd_simulator.api.shapes import FINGERPRINT, Choice, ChunkShape, Delta, Shape, usage_of
from pd_simulator.engine.request import Request
from pd_simulator.errors import ApiError
from pd_simulator.tokenizer import Tokenizer

Abort = Callable[[Request], None]


class Reply:
    """The common part of streamed and whole replies: their choices, and whether they are complete."""

    def __init__(self, generation: Generation, shape: Shape, tokenizer: Tokenizer, abort: Abort) -> None:
        """One choice per prompt and child, in vLLM's order: the children of the first prompt first."""
        self.generation = generation
        self.shape = shape
        self.abort = abort
        self.requests: list[Request] = []
        self.outputs = [
            Output(tokenizer, StopStrings(generation.stop, part=generation.stop_is_part))
            for _ in range(len(generation.prompts) * generation.n)
        ]
        self.error: ApiError | None = None
        self._open = len(self.outputs)

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far, over all choices."""
        return sum(len(output.token_ids) for output in self.outputs)

    @property
    def handover(self) -> dict[str, Any] | None:
        """What the answer says about KV that is kept; in vLLM what the first prompt's last child says."""
        return self.requests[self.generation.n - 1].handover

    def choices(self) -> list[Choice]:
        return [
            Choice(
                "".join(output.text),
                output.token_ids,
                self.prompt_of(index),
                output.finish_reason or "",
                output.stop_reason,
            )
            for index, output in enumerate(self.outputs)
        ]

    @property
    def complete(self) -> bool:
        """True when no token will follow."""
        return self._open == 0 or self.error is not None

    def sink(self, index: int) -> "ChoiceSink":
        """Where the engine puts the tokens of choice `index`."""
        return ChoiceSink(self, index)

    def prompt_of(self, index: int) -> list[int]:
        return self.generation.prompts[index // self.generation.n]

    def take(self, index: int, token: int, finish_reason: str | None) -> None:
        output = self.outputs[index]
        text = output.add(token, finish_reason)
        if output.finish_reason is not None:
            self._open -= 1
            if finish_reason is None:
                self.abort(self.requests[index])  # a stop string ended it; the engine does not know text
        self.show(index, text)

    def fail(self, error: ApiError) -> None:
        """End the reply with an error."""
        self.error = error
        for request in self.requests:
            self.abort(request)
        self.close()

    def show(self, index: int, text: str) -> None:
        """Pass on a choice's new text; called after each token."""

    def close(self) -> None: ...


class ChoiceSink:
    """The engine's end of one choice."""

    def __init__(self, reply: Reply, index: int) -> None:
        self._reply = reply
        self._index = index

    def token(self, token: int, finish_reason: str | None) -> None:
        """Take a token, unless a stop string or an error has ended the choice already."""
        if self._reply.outputs[self._index].finish_reason is None and self._reply.error is None:
            self._reply.take(self._index, token, finish_reason)

    def fail(self, error: ApiError) -> None:
        self._reply.fail(error)


class WholeReply(Reply):
    """A response in one piece."""

    def __init__(self, generation: Generation, shape: Shape, tokenizer: Tokenizer, abort: Abort) -> None:
        super().__init__(generation, shape, tokenizer, abort)
        self._ended = asyncio.Event()

    def show(self, index: int, text: str) -> None:  # noqa: ARG002 - the interface
        """Wait for the last token."""
        if self.complete:
            self.close()

    def close(self) -> None:
        self._ended.set()

    async def body(self) -> bytes:
        """The JSON, when everything is there.

        Raises:
            ApiError: if the engine failed.
        """
        await self._ended.wait()
        if self.error is not None:
            raise self.error
        generation = self.generation
        return self.shape.full(
            self.choices(),
            usage_of(generation.prompt_tokens, self.completion_tokens),
            ids=generation.return_token_ids,
            params=self.handover,
        )


class EventReply(Reply):
    """A response as server-sent events; `torn` says that it ends without an end."""

    torn = False

    def __init__(self, generation: Generation, shape: Shape, tokenizer: Tokenizer, abort: Abort) -> None:
        super().__init__(generation, shape, tokenizer, abort)
        self._pending: list[bytes] = []
        self._more = asyncio.Event()

    async def events(self) -> bytes:
        """All events that are due, as soon as there are any; empty at the end."""
        if not self._pending and not self.complete:
            self._more.clear()
            await self._more.wait()
        data = b"".join(self._pending)
        self._pending.clear()
        return data

    def push(self, data: bytes) -> None:
        self._pending.append(data)
        self._more.set()


class StreamReply(EventReply):
    """A response as chunks of choices."""

    def __init__(
        self, generation: Generation, shape: ChunkShape, tokenizer: Tokenizer, abort: Abort, pieces: list[bytes]
    ) -> None:
        """`pieces` is the JSON of every token's text."""
        super().__init__(generation, shape, tokenizer, abort)
        self._shape = shape
        self._pieces = pieces
        self._plain = not (generation.stop or generation.return_token_ids or generation.continuous_usage)
        self._frames = [shape.frame(index) for index in range(len(self.outputs))]
        self._begun = False

    def take(self, index: int, token: int, finish_reason: str | None) -> None:
        """Add one token; the common chunk is written without looking at it twice."""
        if not (self._plain and self._begun and finish_reason is None):
            super().take(index, token, finish_reason)
            return
        self.outputs[index].token_ids.append(token)
        before, behind = self._frames[index]
        self.push(before + self._pieces[token] + behind)

    def show(self, index: int, text: str) -> None:
        """Write the chunk of a choice's last token, after what precedes it, and before what ends the stream."""
        if not self._begun:
            self._begin()
        output, ids = self.outputs[index], self.generation.return_token_ids
        first = len(output.token_ids) == 1
        delta = Delta(
            index,
            text,
            token_ids=output.token_ids[-1:] if ids else None,
            prompt_token_ids=self.prompt_of(index) if ids and first else None,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )
        last = output.finish_reason is not None and not self.generation.include_usage
        fingerprint = FINGERPRINT if last else None
        self.push(self._shape.chunk(self._shape.delta(delta), usage=self._usage(index), system_fingerprint=fingerprint))
        if self.complete:
            self.close()

    def close(self) -> None:
        """Write the end: usage if asked for, or the error; then the end mark."""
        if self.error is not None:
            self.push(encode_event(self.error.body()))
        elif self.generation.include_usage:
            self.push(self._shape.usage(usage_of(self.generation.prompt_tokens, self.completion_tokens)))
        self.push(encode_event(DONE))

    def _begin(self) -> None:
        self._begun = True
        for index in range(len(self.outputs)):
            ids = self.prompt_of(index) if self.generation.return_token_ids else None
            self.push(self._shape.opening(index, ids, self._usage(index)))

    def _usage(self, index: int) -> dict[str, int] | None:
        if not self.generation.continuous_usage:
            return None
        return usage_of(len(self.prompt_of(index)), len(self.outputs[index].token_ids))
