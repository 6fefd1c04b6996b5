"""The transport by which P2pConnector has connected two engines, read from prefill's metrics. Pure."""

from typing import Final

from prometheus_client.parser import text_string_to_metric_families

SERIES: Final = "pd_kv_peer_up"


def transport_to(address: str, page: bytes) -> str:
    """The transport of the open connection to the engine at this KV address; empty if there is no connection.

    vLLM's page has thousands of lines, so only those of this series are parsed.
    """
    lines = [line for line in page.decode("utf-8", "replace").splitlines() if line.startswith(SERIES)]
    try:
        families = list(text_string_to_metric_families("\n".join(lines) + "\n"))
    except ValueError:
        return ""
    standing = (sample.labels for family in families for sample in family.samples if sample.value == 1)
    return next((labels.get("transport", "") for labels in standing if labels.get("peer") == address), "")
