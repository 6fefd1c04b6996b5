"""The requests that prefill and decode cannot share, by endpoint, with the reason as a sentence. Pure."""

from typing import Final

import msgspec
from msgspec import Raw

from pd_proxy.errors import BadRequestError, NotStoredError
from pd_proxy.protocol.body import SAMPLING, Fields, inner, present, value
from pd_proxy.protocol.endpoints import Endpoint

# Tools that the client runs. The engine runs all others, between two generations of one response.
CLIENT_TOOLS: Final = frozenset({"function", "custom", "namespace"})
# The fields that `_combined_only` looks at; few requests have any of them.
SEPARATING: Final = frozenset({"echo", "prompt_logprobs", "use_beam_search", "suffix", "prompt_embeds"})


class _Tool(msgspec.Struct):
    type: str = ""


def _completion(fields: dict[str, Raw]) -> tuple[int, str | None]:
    """The number of copies of each prompt, and the value of `combined_only`."""
    separating = not SEPARATING.isdisjoint(fields)
    return max(1, value(fields, "n", int) or 1), _combined_only(fields) if separating else None


def _batch(fields: dict[str, Raw]) -> tuple[int, str | None]:
    if fields["stream"] == Raw(b"true"):
        # The proxy sets `stream` in each engine's request, so the engines would not see the client's.
        raise BadRequestError("Batch chat completions do not support streaming.", param="stream")
    return _completion(fields)


def _response(fields: dict[str, Raw]) -> tuple[int, str | None]:
    _check_stores_nothing(fields)
    fields["store"] = Raw(b"false")
    return 1, _engines_own(fields)


def _message(_fields: dict[str, Raw]) -> tuple[int, str | None]:
    return 1, None


def _generate(fields: dict[str, Raw]) -> tuple[int, str | None]:
    sampling = inner(fields, SAMPLING)
    if sampling is None:
        raise BadRequestError(f"you must provide `{SAMPLING}`, an object", param=SAMPLING)
    if present(fields, "features"):
        return 1, "`features` may name items that only the engine that rendered them has"
    for name in ("prompt_logprobs", "prompt_logprob_token_ids"):
        if present(sampling, name):
            return 1, f"`{name}` are computed by prefill, and decode cannot report them"
    return max(1, value(sampling, "n", int) or 1), None


READERS: Final = {
    Endpoint.COMPLETIONS: _completion,
    Endpoint.CHAT: _completion,
    Endpoint.BATCH: _batch,
    Endpoint.RESPONSES: _response,
    Endpoint.MESSAGES: _message,
    Endpoint.GENERATE: _generate,
}


def _check_stores_nothing(fields: Fields) -> None:
    if value(fields, "background", bool):
        raise NotStoredError(
            "`background` is not served: responses are not stored here, so you could not retrieve it",
            param="background",
        )
    if present(fields, "previous_response_id"):
        reason = "responses are not stored here: send the earlier turns in `input`"
        raise NotStoredError(f"`previous_response_id` is not served, because {reason}", param="previous_response_id")


def _engines_own(fields: Fields) -> str | None:
    """As `_combined_only`, for `/v1/responses`."""
    kinds = _tool_kinds(fields)
    if kinds - CLIENT_TOOLS:
        names = ", ".join(f"`{kind[:50]}`" for kind in sorted(kinds - CLIENT_TOOLS))
        return f"tools that the engine runs ({names}) start generations whose KV prefill has not handed over"
    if value(fields, "truncation", str) not in (None, "disabled"):
        return _cut("truncation")
    return None


def cut_by_limit(fields: Fields) -> str | None:
    """As `_combined_only`: prefill would read more of a prompt that is too long than decode."""
    try:
        kept = value(fields, "truncate_prompt_tokens", int)
    except BadRequestError:
        return None  # the engine refuses it, or ignores it where it has no such field
    return _cut("truncate_prompt_tokens") if kept is not None and kept < 0 else None


def _cut(name: str) -> str:
    return f"`{name}` cuts the prompt by the limit of output tokens, which differs between prefill and decode"


def _tool_kinds(fields: Fields) -> set[str]:
    """The tools' types; empty for anything but a list of tools, which engines refuse."""
    if not present(fields, "tools"):
        return set()
    try:
        return {tool.type for tool in msgspec.json.decode(fields["tools"], type=list[_Tool])}
    except (msgspec.MsgspecError, RecursionError):
        return set()


def _combined_only(fields: Fields) -> str | None:
    if value(fields, "echo", bool):
        return "`echo` needs prompt log-probabilities and text that decode does not compute"
    if present(fields, "prompt_logprobs"):
        return "`prompt_logprobs` are computed by prefill, and decode cannot report them"
    if value(fields, "use_beam_search", bool):
        return "beam search (`use_beam_search`) branches after prefill has handed over its KV"
    if present(fields, "suffix") and bytes(fields["suffix"]) != b'""':
        return "`suffix` is not supported with prefill and decode on separate engines"
    if present(fields, "prompt_embeds"):
        return "`prompt_embeds` have no token ids, which the KV hand-off needs"
    return None
