"""The protocols of servers that can be measured: one small module each, frozen objects, no I/O."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from pd_loadgen.client.backends.base import Ask, Backend, Delta, Reader, Sampling, UnsuitableError
from pd_loadgen.client.backends.openai import Chat, Completions, DeepSpeedMii
from pd_loadgen.client.backends.sglang import Sglang
from pd_loadgen.client.backends.tgi import Tgi
from pd_loadgen.client.backends.trtllm import TrtLlm


class Endpoint(StrEnum):
    """Which API is spoken."""

    COMPLETIONS = "completions"
    CHAT = "chat"
    SGLANG = "sglang"
    TGI = "tgi"
    TRTLLM = "trtllm"
    DEEPSPEED_MII = "deepspeed-mii"


BACKENDS: Final[Mapping[Endpoint, Backend]] = {
    Endpoint.COMPLETIONS: Completions(),
    Endpoint.CHAT: Chat(),
    Endpoint.SGLANG: Sglang(),
    Endpoint.TGI: Tgi(),
    Endpoint.TRTLLM: TrtLlm(),
    Endpoint.DEEPSPEED_MII: DeepSpeedMii(),
}

__all__ = [
    "BACKENDS",
    "Ask",
    "Backend",
    "Chat",
    "Completions",
    "DeepSpeedMii",
    "Delta",
    "Endpoint",
    "Reader",
    "Sampling",
    "Sglang",
    "Tgi",
    "TrtLlm",
    "UnsuitableError",
]
