"""`/v1/messages`, Anthropic's API, as vLLM 0.32 writes it over a chat completion: the message, and the typed events of its stream."""

from typing import Any

from pd_contracts.sse import encode_event
from pd_simulator.api.bodies import Body, ChatBody, CountBody, Message, MessageBody, parse
from pd_simulator.api.generation import Generation, Rules
from pd_simulator.api.replies import Abort, EventReply
from pd_simulator.api.shapes import ChatShape, Choice, dumps, usage_of
from pd_simulator.errors import ApiError
from pd_simulator.tokenizer import Tokenizer

PATH = "/v1/messages"
Fields = dict[str, Any]


def read(rules: Rules, data: bytes) -> Generation:
    """Read a body.

    Raises:
        ApiError: if it cannot be served.
    """
    body = parse(data, MessageBody)
    common = Body(
        model=body.model,
        stream=body.stream,
        temperature=body.temperature,
        stop=body.stop_sequences,
        kv_transfer_params=body.kv_transfer_params,
    )
    rules.check(common)
    return rules.generation(common, [_prompt(rules, body)], body.max_tokens)


def count(rules: Rules, data: bytes) -> bytes:
    """Answer a body of `/v1/messages/count_tokens`.

    Raises:
        ApiError: if it cannot be served.
    """
    body = parse(data, CountBody)
    rules.check_model(body.model)
    tokens = len(_prompt(rules, body))
    return dumps({"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})


def error_body(error: ApiError) -> bytes:
    """An error in Anthropic's shape."""
    return dumps({"type": "error", "error": {"type": error.kind, "message": str(error)}})


def _prompt(rules: Rules, body: MessageBody | CountBody) -> list[int]:
    system = [] if body.system is None else [Message("system", body.system)]
    return rules.chat_tokens(ChatBody(messages=[*system, *body.messages]))


class MessageShape(ChatShape):
    """The one object of this API."""

    def full(self, choices: list[Choice], usage: Fields, *, ids: bool, params: Fields | None) -> bytes:  # noqa: ARG002
        """The message; what is null is left out."""
        choice = choices[0]
        said = {
            **self.begun([{"type": "text", "text": choice.text}]),
            **_ended(choice.finish_reason, choice.stop_reason),
            "usage": used(usage),
            "kv_transfer_params": params,
        }
        return dumps({name: value for name, value in said.items() if value is not None})

    def begun(self, content: list[Fields]) -> Fields:
        """A message without what is known at its end."""
        head = self.head
        return {"id": head.response_id, "type": "message", "role": "assistant", "content": content, "model": head.model}


def used(usage: Fields) -> Fields:
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


def _ended(finish_reason: str | None, stop: str | None) -> Fields:
    if finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    return {"stop_reason": "end_turn" if stop is None else "stop_sequence", "stop_sequence": stop}


class MessageStream(EventReply):
    """A message as typed events."""

    def __init__(self, generation: Generation, shape: MessageShape, tokenizer: Tokenizer, abort: Abort) -> None:
        super().__init__(generation, shape, tokenizer, abort)
        self._message = shape
        self._begun = False
        self._block = False

    def show(self, index: int, text: str) -> None:
        """Write the event of a token that has text, after what precedes the first and before what follows the last."""
        if not self._begun:
            self._begin(index)
        if text and not self._block:
            self._block = True
            self._say("content_block_start", content_block={"type": "text", "text": ""}, index=0)
        if text:
            self._say("content_block_delta", delta={"type": "text_delta", "text": text}, index=0)
        if self.complete:
            self.close()

    def close(self) -> None:
        """Write the end, or the error, which takes its place."""
        if self.error is not None:
            self._say("error", error={"type": "internal_error", "message": str(self.error)})
            return
        if self._block:
            self._say("content_block_stop", index=0)
        output, usage = self.outputs[0], usage_of(self.generation.prompt_tokens, self.completion_tokens)
        self._say("message_delta", delta=_ended(output.finish_reason, output.stop_reason), usage=used(usage))
        self._say("message_stop")

    def _begin(self, index: int) -> None:
        self._begun = True
        usage = used(usage_of(len(self.prompt_of(index)), 0))
        self._say(
            "message_start",
            message={**self._message.begun([]), "stop_reason": None, "stop_sequence": None, "usage": usage},
        )

    def _say(self, kind: str, **fields: Any) -> None:
        self.push(encode_event(dumps({"type": kind, **fields}), kind))
