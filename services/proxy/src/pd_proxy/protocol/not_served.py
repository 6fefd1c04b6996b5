"""Endpoints of vLLM that the proxy does not serve, and what a client is told instead of "not found". Pure."""

from collections.abc import Mapping
from typing import Final

_OF_ONE_ENGINE: Final = "concerns one engine, and clients reach all of them here: ask the engine at its own address"
_ADAPTERS: Final = "is for each engine at its own address; the proxy serves an adapter as soon as an engine lists it"
_REASONS: Final[Mapping[str, str]] = {
    "/invocations": "is not served: post to the endpoint itself, such as /v1/chat/completions",
    "/v1/realtime": "is not served, because the proxy passes no WebSockets on: post audio to /v1/audio/transcriptions",
    "/v1/load_lora_adapter": _ADAPTERS,
    "/v1/unload_lora_adapter": _ADAPTERS,
    **dict.fromkeys(
        (
            "/abort_requests",
            "/collective_rpc",
            "/is_paused",
            "/is_sleeping",
            "/pause",
            "/reset_encoder_cache",
            "/reset_mm_cache",
            "/reset_prefix_cache",
            "/resume",
            "/server_info",
            "/sleep",
            "/tokenizer_info",
            "/update_weights",
            "/wake_up",
        ),
        _OF_ONE_ENGINE,
    ),
    **dict.fromkeys(
        ("/start_profile", "/stop_profile"), "is for administrators here, and for all engines: see /admin/start_profile"
    ),
}


def reason(target: str) -> str:
    """Why a path of vLLM, with or without a query, is not served; empty for every other one."""
    path = target.partition("?")[0].rstrip("/")
    said = _REASONS.get(path, "")
    return f"{path} {said}" if said else ""
