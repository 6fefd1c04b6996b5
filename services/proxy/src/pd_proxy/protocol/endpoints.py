"""The paths at which engines generate tokens, and which field of a body holds the model's input. Pure."""

from enum import StrEnum
from typing import Final


class Endpoint(StrEnum):
    """The generating endpoints, by path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    BATCH = "/v1/chat/completions/batch"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    GENERATE = "/inference/v1/generate"


# The field that holds the model's input.
PROMPT: Final = {
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.CHAT: "messages",
    Endpoint.BATCH: "messages",
    Endpoint.RESPONSES: "input",
    Endpoint.MESSAGES: "messages",
    Endpoint.GENERATE: "token_ids",
}
# The fields that come before it in the prompt.
PREFACE: Final = {Endpoint.RESPONSES: "instructions", Endpoint.MESSAGES: "system"}
