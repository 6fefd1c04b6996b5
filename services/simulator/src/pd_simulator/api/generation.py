"""From a request's body to a checked generation, by vLLM 0.23's rules and with its errors.

The output is greedy whatever the sampling parameters say, unless there is a seed; they are accepted. There are no grammars, penalties or parsers, but what
works on the output so far makes each token depend on it (`on_output`). What would change the shape of the answer and is not simulated
(log-probabilities, echo, beam search, suffix) is refused, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from pd_simulator.api.bodies import (
    BatchBody,
    Body,
    ChatBody,
    CompletionBody,
    Message,
    ResponseBody,
    StreamOptions,
    parse,
)
from pd_simulator.errors import ApiError, invalid, unknown_model, unknown_response
from pd_simulator.tokenizer import VOCABULARY_SIZE, Tokenizer

_MAX_CHOICES = 1024
_NO_SEED = -1
_TEXTS = ("text", "input_text", "output_text")
# In vLLM these work on the tokens that the engine has written; with these values, or null, they do nothing.
_ON_OUTPUT: Final[Mapping[str, tuple[Any, ...]]] = {
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "structural_tag": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_detection": ({},),
    "watermarking": (False,),
    "bad_words": ([],),
    "logits_processors": ([],),
    "vllm_xargs": ({},),
    "tools": ([],),
    "functions": ([],),
    "thinking_token_budget": (),
    "include_reasoning": (True,),
}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked request. `n` outputs per prompt; `request_id` is the body's, if it has one; `echo` as in `shapes.Head`.

    `seed` is None if it decides nothing: without one (-1 is none, as in vLLM), or if the temperature is 0. `on_output`: as in `on_output_of`.
    """

    prompts: list[list[int]]
    max_tokens: int
    min_tokens: int
    n: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_is_part: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    kv_transfer_params: dict[str, Any]
    request_id: str | None
    seed: int | None = None
    on_output: bytes = b""
    echo: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens as usage counts them: once per prompt, whatever `n` is."""
        return sum(map(len, self.prompts))


@dataclass(frozen=True, slots=True)
class Rules:
    """What this engine serves."""

    model: str
    max_model_len: int
    tokenizer: Tokenizer

    def completion(self, data: bytes) -> Generation:
        """Read a body of `/v1/completions`.

        Raises:
            ApiError: if it cannot be served.
        """
        body = parse(data, CompletionBody)
        self.check(body)
        if body.prompt is None or body.prompt in ("", []):
            msg = "Either prompt or prompt_embeds must be provided and non-empty."
            raise invalid(msg, "prompt")
        prompts = [self._tokens(prompt) for prompt in _prompts(body.prompt)]
        limit = 16 if body.max_tokens is None else body.max_tokens
        return replace(self.generation(body, _cut(prompts, body), limit), on_output=on_output_of(data))

    def chat(self, data: bytes) -> Generation:
        """Read a body of `/v1/chat/completions`.

        Raises:
            ApiError: if it cannot be served.
        """
        body = parse(data, ChatBody)
        self.check(body)
        prompt = self._forwarded(body) or self.chat_tokens(body)
        made = self.generation(body, _cut([prompt], body), self._chat_limit(body, len(prompt)))
        return replace(made, on_output=on_output_of(data))

    def batch(self, data: bytes) -> Generation:
        """Read a body of `/v1/chat/completions/batch`.

        Raises:
            ApiError: if it cannot be served.
        """
        body = parse(data, BatchBody)
        self.check(body)
        if body.n is not None and body.n != 1:
            msg = "Batch chat completions do not support `n > 1`. Please set `n` to 1."
            raise invalid(msg, "n")
        if not body.messages:
            msg = "messages: List should have at least 1 item"
            raise invalid(msg, "messages")
        conversations = [
            ChatBody(messages=messages, add_generation_prompt=body.add_generation_prompt) for messages in body.messages
        ]
        prompts = [self.chat_tokens(conversation) for conversation in conversations]
        return replace(self.generation(body, prompts, self._chat_limit(body, max(map(len, prompts)))), stream=False)

    def _chat_limit(self, body: ChatBody | BatchBody, prompt: int) -> int:
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        return max(1, self.max_model_len - prompt) if limit is None else limit

    def response(self, data: bytes) -> Generation:
        """Read a body of `/v1/responses`.

        Raises:
            ApiError: if it cannot be served.
        """
        body = parse(data, ResponseBody)
        shared = {name: getattr(body, name) for name in body.__struct_fields__ if name in Body.__struct_fields__}
        common = Body(**shared, return_token_ids=body.enable_response_messages)
        self.check(common)
        if body.background:
            msg = "This vLLM engine does not support `store=True` and therefore does not support the background mode."
            raise ApiError(msg, kind="invalid_request_error", param="background")
        if body.previous_response_id is not None:
            raise unknown_response(body.previous_response_id)
        if body.include:
            msg = "`include` is not simulated."
            raise ApiError(msg, param="include")
        messages = [Message("user", body.input)] if isinstance(body.input, str) else body.input
        if body.instructions is not None:
            messages = [Message("system", body.instructions), *messages]
        prompt = self.chat_tokens(ChatBody(messages=messages))
        limit = max(1, self.max_model_len - len(prompt)) if body.max_output_tokens is None else body.max_output_tokens
        echo = {"instructions": body.instructions, "max_output_tokens": limit}
        return replace(self.generation(common, [prompt], limit), echo=echo)

    def chat_tokens(self, body: ChatBody) -> list[int]:
        """The prompt of a conversation."""
        messages = [(message.role, _text(message)) for message in body.messages]
        if not messages:
            msg = "messages must not be empty"
            raise invalid(msg, "messages")
        return self.tokenizer.chat(messages, add_generation_prompt=body.add_generation_prompt is not False)

    def _forwarded(self, body: ChatBody) -> list[int] | None:
        """The prompt as token ids, where a router brings it along (vLLM 0.32)."""
        ids = (body.kv_transfer_params or {}).pop("prompt_token_ids", None)
        if ids is None:
            return None
        if not isinstance(ids, list) or not ids or not _are_ids(ids):
            msg = "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of token ids"
            raise invalid(msg, "kv_transfer_params.prompt_token_ids")
        self.check_tokens(ids)
        return ids

    def check_model(self, name: str | None) -> None:
        """Refuse another model's name; none at all is fine, as in vLLM.

        Raises:
            ApiError: with status 404.
        """
        if name and name != self.model:
            raise unknown_model(name)

    @staticmethod
    def check_tokens(tokens: list[int]) -> None:
        """Refuse ids that are no tokens (one of them kills a vLLM engine that does not check).

        Raises:
            ApiError: with status 400.
        """
        if tokens and max(tokens) >= VOCABULARY_SIZE:
            msg = f"Token id {max(tokens)} is out of vocabulary"
            raise ApiError(msg, param="prompt")
        if tokens and min(tokens) < 0:
            msg = f"token ids must not be negative, got {min(tokens)}"
            raise invalid(msg, "prompt")

    def check(self, body: Body) -> None:
        """Refuse another model, and what is not simulated.

        Raises:
            ApiError: with the reason.
        """
        if body.stream_options is not None and not body.stream:
            msg = "Stream options can only be defined when `stream=True`."
            raise invalid(msg, "stream_options")
        self.check_model(body.model)
        refused = {
            "echo": body.echo,
            "suffix": body.suffix,
            "use_beam_search": body.use_beam_search,
            "logprobs": body.logprobs is not None and body.logprobs is not False,
            "prompt_logprobs": body.prompt_logprobs is not None,
        }
        for name, wanted in refused.items():
            if wanted:
                msg = f"`{name}` is not simulated."
                raise ApiError(msg, param=name)
        if body.temperature is not None and body.temperature < 0:
            msg = f"temperature must be non-negative, got {body.temperature}."
            raise ApiError(msg, param="temperature")

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        self.check_tokens(prompt)
        return prompt

    def generation(self, body: Body, prompts: list[list[int]], max_tokens: int) -> Generation:
        """The generation that a checked body asks for.

        Raises:
            ApiError: if a number is out of bounds, or a prompt too long.
        """
        n, min_tokens = (1 if body.n is None else body.n), body.min_tokens or 0
        _check_counts(n, max_tokens, min_tokens)
        for prompt in prompts:
            self._check_length(len(prompt), max_tokens)
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        if "" in stop:
            msg = "stop cannot contain an empty string."
            raise ApiError(msg, param="stop")
        options = body.stream_options or StreamOptions()
        return Generation(
            prompts=prompts,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            n=n,
            ignore_eos=bool(body.ignore_eos),
            stop=stop,
            stop_is_part=body.include_stop_str_in_output is True,
            stream=bool(body.stream),
            include_usage=bool(options.include_usage),
            continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
            return_token_ids=bool(body.return_token_ids),
            kv_transfer_params=body.kv_transfer_params or {},
            request_id=body.request_id,
            seed=None if body.seed == _NO_SEED or body.temperature == 0 else body.seed,
        )

    def _check_length(self, tokens: int, max_tokens: int) -> None:
        if tokens == 0:
            msg = "The decoder prompt cannot be empty"
            raise ApiError(msg, param="prompt")
        if tokens + max_tokens > self.max_model_len:
            msg = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested {max_tokens} output "
                f"tokens and your prompt contains {tokens} input tokens, for a total of {tokens + max_tokens} tokens. "
                "Please reduce the length of the input prompt or the number of requested output tokens."
            )
            raise ApiError(msg, param="input_tokens")


def on_output_of(data: bytes) -> bytes:
    """What a valid body asks for that works on the output so far; empty if there is nothing like that."""
    fields = _fields.decode(data)
    found = {name: msgspec.json.decode(fields[name]) for name in _ON_OUTPUT if name in fields}
    return b"".join(
        name.encode() + bytes(fields[name])
        for name, value in found.items()
        if value is not None and value not in _ON_OUTPUT[name]
    )


def _cut(prompts: list[list[int]], body: Body) -> list[list[int]]:
    """The prompts' last tokens, if the body wants no more of them."""
    most = body.truncate_prompt_tokens
    return prompts if most is None or most < 1 else [prompt[-most:] for prompt in prompts]


def _check_counts(n: int, max_tokens: int, min_tokens: int) -> None:
    if not 1 <= n <= _MAX_CHOICES:
        msg = f"n must be at least 1 and at most {_MAX_CHOICES}, got {n}."
        raise ApiError(msg, param="n")
    if max_tokens < 1:
        msg = f"max_tokens must be at least 1, got {max_tokens}."
        raise ApiError(msg, param="max_tokens")
    if min_tokens < 0:
        msg = f"min_tokens must be greater than or equal to 0, got {min_tokens}."
        raise ApiError(msg, param="min_tokens")
    if min_tokens > max_tokens:
        msg = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        raise ApiError(msg, param="min_tokens")


def _prompts(prompt: Any) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list):
        if _are_ids(prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt) or all(
            isinstance(item, list) and _are_ids(item) for item in prompt
        ):
            return prompt
    msg = "prompt: expected a string, a list of strings, a list of token ids, or a list of lists of token ids"
    raise invalid(msg, "prompt")


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # not isinstance: true is not a token


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for part in message.content:
        if part.type not in _TEXTS or part.text is None:
            msg = f"messages: this model reads text, but a part is of type {part.type!r}"
            raise invalid(msg, "messages")
    return "\n".join(part.text or "" for part in message.content)
