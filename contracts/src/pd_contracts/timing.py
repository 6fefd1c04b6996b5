"""The stages of a request in time, which the proxy reports to clients that ask with `X-PD-Timing: 1`.

Streams carry it as the last SSE comment before `[DONE]`, `: pd-timing {json}`; other replies as the header `X-PD-Timing`.
"""

from typing import Final

import msgspec

from pd_contracts.amounts import Number

PREFIX: Final = "pd-timing "


class Stages(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Stages of one request in milliseconds; they sum to the time from arrival at the proxy to the last byte.

    Attributes:
        queue: from arrival until the request went to an engine; with retries, until the last attempt did.
        prefill: the prefill engine's answer; 0 for a combined engine, which hides it in the next stage.
        kv_and_first_decode: from prefill's answer (or dispatch) to decode's first body byte.
        decode: from there to the last byte.
        prefill_instance: name of the instance, never an address; empty for a combined engine.
        decode_instance: name of the instance that wrote the tokens.
        retries: attempts that failed before this one.
        first_token: "prefill" if the first token was handed off, so decode wrote only the rest; `first_token_reason`: why it was not.
        migrations: how often another engine went on with the stream after one that died.
        why: what chose these engines, where the proxy's ROUTING did: "plain", "local", "handed over", "overflow", "waits" or "least late".
        predicted_ttft, predicted_tpot: what the proxy expected when it chose, ms; None if it predicts nothing.
    """

    queue: Number
    prefill: Number
    kv_and_first_decode: Number
    decode: Number
    decode_instance: str
    prefill_instance: str = ""
    retries: int = 0
    first_token: str = ""
    first_token_reason: str = ""
    migrations: int = 0
    why: str = ""
    predicted_ttft: float | None = None
    predicted_tpot: float | None = None


_decoder = msgspec.json.Decoder(Stages)


def encode(stages: Stages) -> str:
    """Write the JSON that goes into the header, or behind `PREFIX` into the comment."""
    return msgspec.json.encode(stages).decode()


def decode(text: str) -> Stages | None:
    """Read a header's value or a comment's text; None if it is something else or broken (timing is never worth a failure)."""
    try:
        return _decoder.decode(text.removeprefix(PREFIX))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # a header may hold lone surrogates
        return None
