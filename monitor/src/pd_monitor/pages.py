"""What an engine's metrics page says about tokens. Joules per computed token need the engine's own count: clients cannot see a cache."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from pd_contracts.names import Role
from pd_contracts.records import LATE_STEP_S, EngineTokens

# Counters of vLLM (v1/metrics/loggers.py) and of the simulator by the field that they become, with the labels that a series must have.
COUNTERS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "prompt": ("vllm:prompt_tokens_total", {}),
    "computed": ("vllm:prompt_tokens_by_source_total", {"source": "local_compute"}),
    "cache_hits": ("vllm:prefix_cache_hits_total", {}),
    "external_hits": ("vllm:external_prefix_cache_hits_total", {}),
    "output": ("vllm:generation_tokens_total", {}),
    "steps": ("sim:step_lateness_seconds_count", {}),
    "on_time": ("sim:step_lateness_seconds_bucket", {"le": f"{LATE_STEP_S}"}),
}
_WANTED: Final = tuple(name for name, _ in COUNTERS.values())


def tokens_of(page: str, *, t: float, name: str, role: Role) -> EngineTokens:
    """The counters of a page, summed over its data-parallel engines; one that it does not have is None.

    Raises:
        ValueError: if a counter is not a number.
    """
    # Pages have thousands of series, of which these few are read often.
    lines = [line for line in page.splitlines() if line.startswith(_WANTED)]
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            for field, (wanted, labels) in COUNTERS.items():
                if sample.name == wanted and labels.items() <= sample.labels.items():
                    sums[field] = sums.get(field, 0.0) + sample.value
    if not sums:
        return EngineTokens(t=t, name=name, role=role, error="its page has no token counter")
    on_time = sums.pop("on_time", None)
    late = sums["steps"] - on_time if on_time is not None and "steps" in sums else None
    return msgspec.structs.replace(EngineTokens(t=t, name=name, role=role), **sums, late_steps=late)


def parse_pages(texts: Sequence[str]) -> list[tuple[Role, str]]:
    """Role and address of each `role=http://host:port/metrics`.

    Raises:
        ValueError: for an invalid entry; the message shows what is expected.
    """
    pages = []
    for text in texts:
        role, _, url = text.partition("=")
        parts = urlsplit(url)
        if role not in set(Role) or parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"ENGINE_METRICS: {text!r} is not the page of an engine; expected something like prefill=http://127.0.0.1:20003/metrics"
            raise ValueError(msg)
        pages.append((Role(role), url))
    return pages


def named(pages: Iterable[tuple[Role, str]]) -> list[tuple[str, Role, str]]:
    """A name for each page: its role and its number among those of the role."""
    counts = dict.fromkeys(Role, 0)
    found = []
    for role, url in pages:
        found.append((f"{role.value}-{counts[role]}", role, url))
        counts[role] += 1
    return found
