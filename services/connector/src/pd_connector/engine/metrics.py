"""`pd_kv_*` on the engine's own /metrics: names, labels, and the conversion of the workers' counters to series."""

from typing import Any, Final

COUNTERS: Final = {
    "sent_bytes": ("pd_kv_sent_bytes_total", "KV sent to decode engines, by transport.", "transport"),
    "received_bytes": ("pd_kv_received_bytes_total", "KV received from prefill engines, by transport.", "transport"),
    "sends": ("pd_kv_sends_total", "Keys that this engine computed for others, by outcome.", "outcome"),
    "loads": ("pd_kv_loads_total", "Keys that this engine was asked to load, by outcome.", "outcome"),
    "peer_lost": ("pd_kv_peers_lost_total", "Connections to other engines that broke, by their role.", "role"),
    "refused": ("pd_kv_hello_refused_total", "Engines that this one cannot work with, by what differs.", "reason"),
    "fell_back": (
        "pd_kv_transport_fallbacks_total",
        "Connections to decode engines over a slower transport, by the one that did not work.",
        "transport",
    ),
    "ignored": ("pd_kv_requests_ignored_total", "Requests whose `pd` could not be used; they were computed here.", ""),
}
GAUGES: Final = {
    "landing_pages": ("pd_kv_landing_pages", "Pages of landing memory, by state.", "state"),
    "staging_pages": ("pd_kv_staging_pages", "Pages of staging memory, by state.", "state"),
    "peer_up": (
        "pd_kv_peer_up",
        "Whether a connection to another engine is open, by its address and transport.",
        "peer transport",
    ),
}
# Always 1: their labels say something about the engine. Absent if they would be empty.
INFO: Final = {
    "draws": (
        "pd_seeded_draws",
        "How tokens of requests with a seed are drawn: engines with equal labels draw the same ones. Absent if draws depend on more than seed and position.",
        "draws",
    ),
    "own": (
        "pd_own_sampling",
        "Sampling fields that work on the output so far and have a default of this engine's own, and its own limit of output tokens.",
        "fields max_tokens",
    ),
}
HISTOGRAMS: Final = {
    "stage": ("pd_kv_stage_seconds", "Seconds by stage of a transfer.", "stage"),
}


def label_values(label: str, labels: int) -> list[str]:
    """The label values of a counter, which stores them as one text."""
    return label.split(" ", labels - 1) if labels else []


def merge(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge two sets of counters: counts add up, durations are joined, gauges are the later ones."""
    counts = {(name, label): value for name, label, value in mine.get("counts", ())}
    for name, label, value in other.get("counts", ()):
        counts[name, label] = counts.get((name, label), 0) + value
    gauges = {(name, label): value for name, label, value in (*mine.get("gauges", ()), *other.get("gauges", ()))}
    spans = {(name, label): list(values) for name, label, values in mine.get("spans", ())}
    for name, label, values in other.get("spans", ()):
        spans.setdefault((name, label), []).extend(values)
    return {
        "counts": [[*key, value] for key, value in counts.items()],
        "gauges": [[*key, value] for key, value in gauges.items()],
        "spans": [[*key, values] for key, values in spans.items()],
    }


def summary(data: dict[str, Any]) -> dict[str, int | float]:
    """A summary for the engine's log."""
    found: dict[str, int | float] = {}
    for name, label, value in data.get("counts", ()):
        found[f"{name} {label}".strip()] = value
    for name, label, values in data.get("spans", ()):
        found[f"{name} {label} mean ms"] = round(sum(values) / len(values) * 1000, 3)
    return found
