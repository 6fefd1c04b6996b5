"""Bodies of requests: the fields that the simulator uses. Unknown fields are ignored, as vLLM does."""

from typing import Any, TypeVar

import msgspec

from pd_simulator.errors import invalid

B = TypeVar("B", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct):
    """What a stream says beside its text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Part(msgspec.Struct):
    """A piece of a message; `text` of those that are text."""

    type: str = "text"
    text: str | None = None


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None


class Body(msgspec.Struct, kw_only=True):
    """The fields that the endpoints share."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = 0
    ignore_eos: bool | None = False
    n: int | None = 1
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = False
    temperature: float | None = None
    seed: int | None = None
    return_token_ids: bool | None = False
    kv_transfer_params: dict[str, Any] | None = None
    request_id: str | None = None
    echo: bool | None = False
    logprobs: Any = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = False
    suffix: str | None = None
    truncate_prompt_tokens: int | None = None


class CompletionBody(Body, kw_only=True):
    """Body of `/v1/completions`. `prompt` is a text, texts, token ids, or lists of token ids."""

    prompt: Any = None


class ChatBody(Body, kw_only=True):
    """Body of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = True


class ResponseBody(msgspec.Struct, kw_only=True):
    """Body of `/v1/responses`. `input` is a text, or messages."""

    input: str | list[Message]
    model: str | None = None
    stream: bool | None = False
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    ignore_eos: bool | None = False
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = False
    background: bool | None = False
    previous_response_id: str | None = None
    include: list[str] | None = None
    enable_response_messages: bool = False
    kv_transfer_params: dict[str, Any] | None = None
    request_id: str | None = None


class BatchBody(Body, kw_only=True):
    """Body of `/v1/chat/completions/batch`: several conversations."""

    messages: list[list[Message]]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = True


class MessageBody(msgspec.Struct, kw_only=True):
    """Body of `/v1/messages`, Anthropic's API; `system` is a text, or parts."""

    model: str
    messages: list[Message]
    max_tokens: int
    system: str | list[Part] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    kv_transfer_params: dict[str, Any] | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """Body of `/v1/messages/count_tokens`."""

    model: str
    messages: list[Message]
    system: str | list[Part] | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """`sampling_params` of `/inference/v1/generate`."""

    max_tokens: int | None = None
    min_tokens: int | None = 0
    n: int | None = 1
    ignore_eos: bool | None = False
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = False
    temperature: float | None = None
    seed: int | None = None
    logprobs: Any = None
    prompt_logprobs: int | None = None


class TokensBody(msgspec.Struct, kw_only=True):
    """Body of `/inference/v1/generate`: token ids in, token ids out."""

    token_ids: list[int]
    sampling_params: Sampling
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    kv_transfer_params: dict[str, Any] | None = None
    request_id: str | None = None


def parse(data: bytes, type_: type[B]) -> B:
    """Read a JSON body.

    Raises:
        ApiError: if it is not JSON, or a field has the wrong type.
    """
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(str(error)) from error
