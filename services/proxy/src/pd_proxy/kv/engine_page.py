"""What an engine and its P2pConnector say on the engine's /metrics page. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from pd_proxy.engines.registry import Told

PEER: Final = "pd_kv_peer_up"
DRAWS: Final = "pd_seeded_draws"
OWN: Final = "pd_own_sampling"
CACHE: Final = "vllm:cache_config_info"


def transport_to(address: str, page: bytes) -> str:
    """The transport of the open connection to the engine at this KV address; empty if there is no connection."""
    return next((labels.get("transport", "") for labels in _set(PEER, page) if labels.get("peer") == address), "")


def told_by(page: bytes) -> Told:
    """What the proxy needs to know of the engine itself."""
    own = next(_set(OWN, page), {})
    limit = own.get("max_tokens", "")
    return Told(
        draws=draws_of(page),
        kv_tokens=kv_tokens_of(page),
        own_fields=tuple(own.get("fields", "").split()),
        own_limit=int(limit) if limit.isdecimal() else 0,
    )


def draws_of(page: bytes) -> str:
    """How the engine draws tokens of requests with a seed; empty unless this depends on seed and position alone.

    Engines for which it is equal draw the same token at the same position.
    """
    return next((labels.get("draws", "") for labels in _set(DRAWS, page)), "")


def kv_tokens_of(page: bytes) -> int:
    """The size of the engine's KV cache in tokens; 0 if it does not tell. Older versions of vLLM tell its blocks only."""
    labels = next(_set(CACHE, page), {})
    tokens, blocks, size = (labels.get(n, "") for n in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size"))
    if tokens.isdecimal():
        return int(tokens)
    return int(blocks) * int(size) if blocks.isdecimal() and size.isdecimal() else 0


def _set(series: str, page: bytes) -> Iterator[Mapping[str, str]]:
    """The labels of a series' samples that are 1. vLLM's page has thousands of lines, so only those of this series are parsed."""
    lines = [line for line in page.decode("utf-8", "replace").splitlines() if line.startswith(series)]
    try:
        families = list(text_string_to_metric_families("\n".join(lines) + "\n"))
    except ValueError:
        return
    for family in families:
        yield from (sample.labels for sample in family.samples if sample.name == series and sample.value == 1)
