"""Asks an engine about itself: whether it is an engine, its models and its version."""

from typing import Any, Final

import msgspec

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import BrokenReplyError, UpstreamError
from pd_proxy.upstream.http import Upstream

# The mark in the answer of a proxy's own /health.
SERVICE: Final = "pd-proxy"


class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


class _Health(msgspec.Struct):
    service: str = ""


class _Version(msgspec.Struct):
    version: str


_models = msgspec.json.Decoder(_Models)
_health = msgspec.json.Decoder(_Health)
_version = msgspec.json.Decoder(_Version)


async def check_health(upstream: Upstream, instance: Instance, timeout_s: float) -> None:
    """Check that the engine is healthy.

    Raises:
        UpstreamError: if it is not, or if a proxy answers, to which requests would return endlessly.
    """
    body = await upstream.get(instance, "/health", timeout_s)
    try:
        service = _health.decode(body).service
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # vLLM's answer is empty, other servers' may be anything
    if service == SERVICE:
        raise BrokenReplyError("a proxy answers at this address instead of an engine")


async def ask_models(
    upstream: Upstream, instance: Instance, timeout_s: float, wanted: str
) -> tuple[dict[str, Any], ...]:
    """The entries of the engine's `/v1/models`; `wanted` must be among them, or the path behind one, unless it is empty.

    Raises:
        UpstreamError: if it does not answer, or does not serve `wanted`.
    """
    try:
        models = tuple(_models.decode(await upstream.get(instance, "/v1/models", timeout_s)).data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BrokenReplyError("/v1/models is not a list of models") from None
    if not models or not all(isinstance(model.get("id"), str) for model in models):
        raise BrokenReplyError("/v1/models names no model")
    # `root` is the path behind a served name, and MODEL may be either
    if wanted and not any(wanted in (model["id"], model.get("root")) for model in models):
        raise BrokenReplyError(f"does not serve MODEL, but {models[0]['id'][:200]}")
    return models


async def ask_version(upstream: Upstream, instance: Instance, timeout_s: float) -> str:
    """The version of the engine's software; empty if it does not tell."""
    try:
        return _version.decode(await upstream.get(instance, "/version", timeout_s)).version
    except (UpstreamError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
