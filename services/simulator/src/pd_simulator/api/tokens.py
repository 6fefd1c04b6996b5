"""`/inference/v1/generate` as vLLM 0.32 writes it: token ids in, token ids out."""

from dataclasses import replace
from typing import Any

from pd_contracts.sse import encode_event
from pd_simulator.api.bodies import Body, TokensBody, parse
from pd_simulator.api.generation import Generation, Rules
from pd_simulator.api.shapes import Choice, ChunkShape, Delta, dumps
from pd_simulator.errors import invalid

Fields = dict[str, Any]
# What no engine here has, in every choice.
_NOTHING = {"routed_experts": None, "sampling_mask": None, "weight_versions": None, "logprobs": None}


def read(rules: Rules, data: bytes) -> Generation:
    """Read a body.

    Raises:
        ApiError: if it cannot be served.
    """
    body = parse(data, TokensBody)
    sampling = body.sampling_params
    common = Body(
        **{name: getattr(sampling, name) for name in sampling.__struct_fields__},
        model=body.model,
        stream=body.stream,
        stream_options=body.stream_options,
        return_token_ids=True,
        kv_transfer_params=body.kv_transfer_params,
        request_id=body.request_id,
    )
    rules.check(common)
    if not body.token_ids:
        msg = "token_ids: List should have at least 1 item"
        raise invalid(msg, "token_ids")
    rules.check_tokens(body.token_ids)
    limit = common.max_tokens if common.max_tokens is not None else max(1, rules.max_model_len - len(body.token_ids))
    generation = rules.generation(common, [body.token_ids], limit)
    return replace(generation, echo={"prompt": bool(body.return_token_ids)})


class TokensShape(ChunkShape):
    """Choices of token ids."""

    prefix = "generate-tokens"

    def engine_id(self, prompt: int) -> str:  # noqa: ARG002  there is only one
        return self.head.response_id

    def opening(self, index: int, prompt_token_ids: list[int] | None, usage: Fields | None) -> bytes:  # noqa: ARG002
        """It begins with the first token."""
        return b""

    def delta(self, delta: Delta) -> Fields:
        return {**_choice(delta), "prompt_token_ids": delta.prompt_token_ids}

    def frame(self, index: int) -> tuple[bytes, bytes]:  # noqa: ARG002
        """None: token ids change the whole chunk, so each is encoded alone."""
        return b"", b""

    def chunk(self, choice: Fields, **rest: Any) -> bytes:
        """One SSE event; the prompt's ids, if the client asked for them, beside the first choice."""
        prompt = choice.pop("prompt_token_ids")
        body = {"request_id": self.head.response_id, "usage": rest.get("usage")}
        if prompt is not None and self.head.echo["prompt"]:
            body["prompt_token_ids"] = prompt
        return encode_event(dumps({**body, "output_mode": "tokens", "choices": [choice]}))

    def usage(self, usage: Fields) -> bytes:
        return encode_event(
            dumps({"request_id": self.head.response_id, "usage": usage, "output_mode": "tokens", "choices": []})
        )

    def full(self, choices: list[Choice], usage: Fields, *, ids: bool, params: Fields | None) -> bytes:  # noqa: ARG002
        head = self.head
        return dumps(
            {
                "request_id": head.response_id,
                "model": head.model,
                "created": head.created,
                "usage": {**usage, "prompt_tokens_details": None},
                "prompt_logprobs": None,
                "prompt_token_id_logprobs": None,
                "prompt_token_ids": choices[0].prompt_token_ids if head.echo["prompt"] else None,
                "mm_placeholders": None,
                "metrics": None,
                "kv_transfer_params": params,
                "ec_transfer_params": None,
                "output_mode": "tokens",
                "choices": [{"index": index, **_choice(choice)} for index, choice in enumerate(choices)],
            }
        )


def _choice(of: Choice | Delta) -> Fields:
    number = {"index": of.index} if isinstance(of, Delta) else {}
    return {
        **number,
        "finish_reason": of.finish_reason,
        "stop_reason": of.stop_reason,
        "token_ids": of.token_ids,
        **_NOTHING,
    }
