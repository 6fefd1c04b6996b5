"""`/v1/responses` as vLLM 0.23.0 writes it: the response, and the typed events of its stream.

The stream begins before the engine has heard of the request, is numbered event by event, ends with the whole response, and breaks
off if the engine fails: vLLM has no event for that.
"""

from typing import Any
from uuid import uuid4

from pd_contracts.sse import encode_event
from pd_simulator.api.generation import Generation
from pd_simulator.api.replies import Abort, EventReply
from pd_simulator.api.shapes import Choice, Shape, dumps, usage_of
from pd_simulator.tokenizer import Tokenizer

Fields = dict[str, Any]


class ResponseShape(Shape):
    """The one object of this API."""

    @staticmethod
    def response_id(header: str | None, body: str | None) -> str:  # noqa: ARG004  vLLM does not look at it
        """The body's, which is the answer's too."""
        return body or f"resp_{uuid4().hex}"

    def engine_id(self, prompt: int) -> str:  # noqa: ARG002  there is only one
        """The first generation of a response, and here the only one."""
        return f"{self.head.response_id}_0"

    def full(self, choices: list[Choice], usage: Fields, *, ids: bool, params: Fields | None) -> bytes:
        return dumps(self.finished(choices[0], usage, f"msg_{uuid4().hex}", ids=ids, params=params))

    def begun(self) -> Fields:
        """The response before its first token."""
        return self._response("in_progress", [], None)

    def finished(self, choice: Choice, usage: Fields, item_id: str, *, ids: bool, params: Fields | None) -> Fields:
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        said = [{"message": choice.text, "tokens": choice.token_ids, "type": "raw_message_tokens"}]
        read = [{"message": "", "tokens": choice.prompt_token_ids, "type": "raw_message_tokens"}]
        return {
            **self._response(status, [message(item_id, "completed", [part(choice.text)])], _usage(usage)),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "kv_transfer_params": params,
            "input_messages": read if ids else None,
            "output_messages": said if ids else None,
        }

    def _response(self, status: str, output: list[Fields], usage: Fields | None) -> Fields:
        head = self.head
        return {
            "id": head.response_id,
            "created_at": head.created,
            "incomplete_details": None,
            "instructions": None,
            "metadata": None,
            "model": head.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0,
            "background": False,
            "previous_response_id": None,
            "service_tier": "auto",
            "status": status,
            "truncation": "disabled",
            "usage": usage,
            "kv_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
            **head.echo,
        }


def message(item_id: str, status: str, content: list[Fields]) -> Fields:
    """What the assistant says, as one item of the output."""
    return {"id": item_id, "content": content, "role": "assistant", "status": status, "type": "message"}


def part(text: str) -> Fields:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _usage(usage: Fields) -> Fields:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "input_tokens_per_turn": [], "cached_tokens_per_turn": []},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": usage["total_tokens"],
    }


class ResponseStream(EventReply):
    """A response as typed events."""

    def __init__(self, generation: Generation, shape: ResponseShape, tokenizer: Tokenizer, abort: Abort) -> None:
        super().__init__(generation, shape, tokenizer, abort)
        self._response = shape
        self._item_id = ""
        self._number = 0
        for kind in ("response.created", "response.in_progress"):
            self._say(kind, response=shape.begun())

    def show(self, index: int, text: str) -> None:  # noqa: ARG002  there is one sequence
        """Write the event of a token that has text, after what precedes the first and before what follows the last."""
        if text and not self._item_id:
            self._begin()
        if text:
            self._item("response.output_text.delta", content_index=0, delta=text, logprobs=[])
        if self.complete:
            self.close()

    def close(self) -> None:
        """Write the end; a stream whose engine failed has none."""
        if self.error is not None:
            self.torn = True
            self.push(b"")
            return
        text = "".join(self.outputs[0].text)
        if self._item_id:
            self._item("response.output_text.done", content_index=0, logprobs=[], text=text)
            self._item("response.content_part.done", content_index=0, part=part(text))
            done = message(self._item_id, "completed", [part(text)])
            self._say("response.output_item.done", item=done, output_index=0)
        usage = usage_of(self.generation.prompt_tokens, self.completion_tokens)
        self._say(
            "response.completed",
            response=self._response.finished(
                self.choices()[0],
                usage,
                f"msg_{uuid4().hex}",
                ids=self.generation.return_token_ids,
                params=self.handover,
            ),
        )

    def _begin(self) -> None:
        self._item_id = uuid4().hex
        self._say("response.output_item.added", item=message(self._item_id, "in_progress", []), output_index=0)
        self._item("response.content_part.added", content_index=0, part=part(""))

    def _item(self, kind: str, **fields: Any) -> None:
        self._say(kind, item_id=self._item_id, output_index=0, **fields)

    def _say(self, kind: str, **fields: Any) -> None:
        body = {**fields, "sequence_number": self._number, "type": kind}
        self._number += 1
        self.push(encode_event(dumps(body), kind))
