"""Test requests as a client would send them: a short completion, plain and streamed, and a chat; each result is one sentence."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pd_contracts import sse, timing
from pd_contracts.http_call import Reply
from pd_contracts.names import TIMING_HEADER
from pd_control.client import ClientError, events, json_of, post

PROMPT = "The capital of France is"
TOKENS = 8
FROM_PREFILL = "prefill"  # what the stages say of a first token that was handed off


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """How one request went. `tokens` are ids where the server gives them, else pieces of text."""

    name: str
    ok: bool
    sentence: str
    text: str = ""
    tokens: list[int] = msgspec.field(default_factory=list)
    stages: timing.Stages | None = None
    elapsed_s: float = 0.0
    streamed: bool = False


def run(url: str, model: str, timeout_s: float) -> Iterator[Check]:
    """Yield the checks as they are done; the last one compares the plain answer with the streamed one."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    plain = _completion(url, body, timeout_s)
    yield plain
    streamed = _stream(url, body, timeout_s)
    yield streamed
    messages = [{"role": "user", "content": PROMPT}]
    chat = _chat(url, {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}, timeout_s)
    yield _without_template(chat) or chat
    if plain.ok and streamed.ok:
        yield compare(plain, streamed)


def compare(plain: Check, streamed: Check) -> Check:
    """Greedy answers to one prompt must be the same."""
    same = (plain.tokens, plain.text) == (streamed.tokens, streamed.text)
    sentence = "the streamed answer equals the plain one" if same else "the streamed answer differs from the plain one"
    return Check(name="same answer", ok=same, sentence=sentence)


def _completion(url: str, body: Mapping[str, Any], timeout_s: float) -> Check:
    return _plain("completion", f"{url}/v1/completions", body, timeout_s, lambda choice: choice["text"])


def _without_template(chat: Check) -> Check | None:
    """A skipped check if the model has no chat template (a base model), which is not a fault; None otherwise."""
    if chat.ok or "chat template" not in chat.sentence.lower():
        return None
    return Check(name=chat.name, ok=True, sentence="skipped: this model has no chat template")


def _chat(url: str, body: Mapping[str, Any], timeout_s: float) -> Check:
    return _plain("chat", f"{url}/v1/chat/completions", body, timeout_s, lambda choice: choice["message"]["content"])


def _plain(name: str, url: str, body: Mapping[str, Any], timeout_s: float, text_of: Any) -> Check:
    try:
        reply = post(url, body, {TIMING_HEADER: "1"}, timeout_s)
        refuse_error(reply)
        answer = json_of(reply)
        choice = answer["choices"][0]
        return judge(
            name,
            text=text_of(choice) or "",
            tokens=choice.get("token_ids") or [],
            count=answer["usage"]["completion_tokens"],
            stages=timing.decode(reply.headers.get(TIMING_HEADER.lower(), "")),
            elapsed_s=reply.elapsed_s,
        )
    except ClientError as error:
        return Check(name=name, ok=False, sentence=str(error))
    except (KeyError, IndexError, TypeError) as error:
        return Check(name=name, ok=False, sentence=f"the answer is not of OpenAI's form: {error!r} is missing")


def _stream(url: str, body: Mapping[str, Any], timeout_s: float) -> Check:
    name = "streamed completion"
    begin = time.monotonic()
    try:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        reply = post(f"{url}/v1/completions", streamed, {TIMING_HEADER: "1"}, timeout_s)
        refuse_error(reply)
        return msgspec.structs.replace(judge_stream(name, reply.body, time.monotonic() - begin), streamed=True)
    except ClientError as error:
        return Check(name=name, ok=False, sentence=str(error))
    except (KeyError, IndexError, TypeError, msgspec.MsgspecError) as error:
        return Check(name=name, ok=False, sentence=f"a chunk is not of OpenAI's form: {error!r}")


def judge_stream(name: str, body: bytes, elapsed_s: float) -> Check:
    """Read a whole stream.

    Raises:
        ClientError: if it was cut or carries an error.
    """
    text, tokens, count, done = "", list[int](), 0, False
    stages: timing.Stages | None = None
    for item in events(body):
        if isinstance(item, sse.Comment):
            stages = timing.decode(item.text) or stages
        elif item.done:
            done = True
        else:
            chunk = msgspec.json.decode(item.data)
            if "error" in chunk:
                raise ClientError(str(chunk["error"].get("message", chunk["error"])))
            for choice in chunk["choices"]:
                text += choice["text"]
                tokens += choice.get("token_ids") or []
            count = (chunk.get("usage") or {}).get("completion_tokens", count)
    if not done:
        msg = "the stream ended without [DONE]"
        raise ClientError(msg)
    return judge(name, text=text, tokens=tokens, count=count, stages=stages, elapsed_s=elapsed_s)


def judge(
    name: str, *, text: str, tokens: list[int], count: int, stages: timing.Stages | None, elapsed_s: float
) -> Check:
    """Ok if tokens came."""
    ok = count > 0 and bool(text or tokens)
    sentence = (
        f"{count} token{'' if count == 1 else 's'} in {elapsed_s * 1e3:.0f} ms"
        if ok
        else "status 200 without a single token"
    )
    return Check(name=name, ok=ok, sentence=sentence, text=text, tokens=tokens, stages=stages, elapsed_s=elapsed_s)


def refuse_error(reply: Reply) -> None:
    """Turn a status other than 200 into an error with the server's own message.

    Raises:
        ClientError: always then.
    """
    if reply.status == 200:
        return
    try:
        message = json_of(reply)["error"]["message"]
    except (ClientError, KeyError, TypeError):
        message = reply.body[:200].decode("utf-8", "replace")
    msg = f"status {reply.status}: {message}"
    raise ClientError(msg)


def stages_line(stages: timing.Stages, *, streamed: bool) -> str:
    """The stages as one line, in milliseconds. An answer that is not streamed comes in one piece: what came before its end cannot be told apart."""
    route = " → ".join(filter(None, (stages.prefill_instance, stages.decode_instance)))
    parts = [("queue", stages.queue)]
    first, decode, whole = "KV + first token", "decode", "KV + decode"
    if stages.first_token == FROM_PREFILL:
        first, decode = "first token", "KV + decode"
    if stages.prefill_instance:
        parts.append(("prefill", stages.prefill))
    else:
        first, whole = "prefill + first token", "prefill + decode"  # a combined engine does both in one stage
    if streamed:
        parts += [(first, stages.kv_and_first_decode), (decode, stages.decode)]
    else:
        parts.append((whole, stages.kv_and_first_decode + stages.decode))
    return f"{route}: {', '.join(f'{name} {took:.1f}' for name, took in parts)} ms"
