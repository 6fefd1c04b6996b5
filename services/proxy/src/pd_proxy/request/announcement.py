"""Sends decode its request before prefill's token is known: decode loads the KV while prefill computes, and then needs only the token."""

import asyncio
from typing import Final

import msgspec
from msgspec import Raw

from pd_proxy.context import Context
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import RefusedError, UpstreamError
from pd_proxy.kv.keyed import Keyed
from pd_proxy.protocol.body import Fields, encode
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.first_token import FirstToken
from pd_proxy.protocol.generation import Generation
from pd_proxy.request.ask import ask, ask_ahead
from pd_proxy.upstream.flights import Flight
from pd_proxy.upstream.replies import Reply

TOKENIZE: Final = "/tokenize"
DETOKENIZE: Final = "/detokenize"
TOKENIZE_TIMEOUT_S: Final = 5.0
# A single token in every vocabulary.
_WORD: Final = "a"
# The fields that determine the prompt.
_TEMPLATE: Final = (
    "model", "messages", "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template",
    "chat_template_kwargs",
)  # fmt: skip
# These would have to be template arguments, which `/tokenize` does not know.
_UNKNOWN: Final = ("documents", "reasoning_effort")


class _Tokens(msgspec.Struct):
    tokens: Raw


class _Ids(msgspec.Struct):
    tokens: list[int]


class _Text(msgspec.Struct):
    prompt: str


class Announcement:
    """The announcement of one request. If it cannot be used, decode is asked as if there had been none."""

    def __init__(self, context: Context, keyed: Keyed, *, early: bool = True) -> None:
        """Announce the request, if decode is known (`early`) and its tokenizer gives the prompt's token ids and a stand-in."""
        self._context = context
        self._keyed = keyed
        self._prompt: Raw | None = None
        self._flight: Flight | None = None
        self._task: asyncio.Task[Reply | bytes | None] | None = None
        if early:
            self._task = asyncio.create_task(self._announce())

    async def reply(self, first: FirstToken) -> tuple[Flight, Reply] | None:
        """The stream that decode has begun; None if it cannot follow this token."""
        reply = await self._answer(first)
        return (self._flight, reply) if isinstance(reply, Reply) and self._flight is not None else None

    async def body(self, first: FirstToken) -> bytes | None:
        """Decode's non-streamed answer; None if it cannot follow this token."""
        body = await self._answer(first)
        return body if isinstance(body, bytes) else None

    @property
    def sent(self) -> bool:
        """Whether decode has got the request."""
        return self._flight is not None

    def end(self) -> None:
        """Drop what was not used."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if self._flight is not None:
            self._flight.land()

    async def _answer(self, first: FirstToken) -> Reply | bytes | None:
        if self._task is None or self._prompt is None or self._flight is None:
            return None
        if not same_ids(self._prompt, first.prompt):
            return None
        self._flight.due()
        try:
            found = await self._task
        except UpstreamError:
            return None  # decode is asked again, and then gives the reason or succeeds
        self._task = None
        return found

    async def _announce(self) -> Reply | bytes | None:
        context, keyed, generation = self._context, self._keyed, self._keyed.generation
        await asyncio.sleep(0)  # prefill's request goes first: the client waits for it
        stand_in = await stand_in_of(context, keyed.pair.decode)
        prompt = None if stand_in is None else prompt_ids(generation) or await self._tokenized()
        if stand_in is None or prompt is None:
            return None
        leg = keyed.announced(prompt, stand_in)
        flight = context.flights.open(keyed.pair.decode, whole=not generation.stream)
        flight.early = True
        self._prompt, self._flight = prompt, flight
        if generation.stream:
            return await ask_ahead(context, generation.endpoint, leg, flight)
        return await ask(context, keyed.pair.decode, generation.endpoint, leg, flight=flight)

    async def _tokenized(self) -> Raw | None:
        """The prompt's token ids from decode, which is less busy than prefill; None if it does not give them."""
        body = tokenize_body(self._keyed.generation)
        if body is None:
            return None
        try:
            answer = await self._context.upstream.call(self._keyed.pair.decode, TOKENIZE, body, TOKENIZE_TIMEOUT_S)
            return msgspec.json.decode(answer, type=_Tokens).tokens
        except (UpstreamError, msgspec.MsgspecError):
            return None


async def stand_in_of(context: Context, engine: Instance) -> int | None:
    """A token id that the prompt can hold in place of prefill's token; None if this engine's tokenizer gives none.

    Decode's server begins to turn tokens into text after it. So it must be a whole word: after a special token, or after half a
    character, the following text could differ.
    """
    known = context.stand_ins
    if engine.incarnation not in known:
        try:
            known[engine.incarnation] = await _one_word(context, engine)
        except (RefusedError, msgspec.MsgspecError):
            known[engine.incarnation] = None  # the engine has no tokenizer
        except UpstreamError:
            return None
    return known[engine.incarnation]


async def _one_word(context: Context, engine: Instance) -> int | None:
    asked = {"model": engine.models[0], "prompt": _WORD, "add_special_tokens": False}
    answer = await context.upstream.call(engine, TOKENIZE, msgspec.json.encode(asked), TOKENIZE_TIMEOUT_S)
    ids = msgspec.json.decode(answer, type=_Ids).tokens
    if len(ids) != 1:
        return None
    back = msgspec.json.encode({"model": engine.models[0], "tokens": ids})
    text = msgspec.json.decode(
        await context.upstream.call(engine, DETOKENIZE, back, TOKENIZE_TIMEOUT_S), type=_Text
    ).prompt
    return ids[0] if text.strip().isalnum() else None


def prompt_ids(generation: Generation) -> Raw | None:
    """The prompt of a completion, if the client wrote it as token ids."""
    if generation.endpoint is not Endpoint.COMPLETIONS:
        return None
    prompt = bytes(generation.fields["prompt"])
    return Raw(prompt) if prompt.startswith(b"[") and b'"' not in prompt and prompt.count(b"[") == 1 else None


def tokenize_body(generation: Generation) -> bytes | None:
    """The body for `/tokenize`; None if that would not return this request's prompt."""
    fields: Fields = generation.fields
    if generation.endpoint is Endpoint.CHAT:
        if any(name in fields for name in _UNKNOWN):
            return None
        return encode({name: fields[name] for name in _TEMPLATE if name in fields})
    if not bytes(fields["prompt"]).startswith(b'"'):
        return None
    return encode({name: fields[name] for name in ("model", "prompt", "add_special_tokens") if name in fields})


def same_ids(one: Raw, other: Raw) -> bool:
    """Whether two lists of token ids are equal. Most clients write blanks that engines do not, and decoding costs ten times as much."""
    return _bare(one) == _bare(other) or msgspec.json.decode(one) == msgspec.json.decode(other)


def _bare(ids: Raw) -> bytes:
    return bytes(ids).translate(None, b" \n\r\t")
