"""Paths under which engines make tokens, and where in a body stands what the model reads. Pure."""

from enum import StrEnum
from typing import Final


class Endpoint(StrEnum):
    """Generating endpoints, by path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    BATCH = "/v1/chat/completions/batch"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    GENERATE = "/inference/v1/generate"


# The field that holds what the model reads.
PROMPT: Final = {
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.CHAT: "messages",
    Endpoint.BATCH: "messages",
    Endpoint.RESPONSES: "input",
    Endpoint.MESSAGES: "messages",
    Endpoint.GENERATE: "token_ids",
}
# What it reads before that.
PREFACE: Final = {Endpoint.RESPONSES: "instructions", Endpoint.MESSAGES: "system"}
