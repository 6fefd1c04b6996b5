"""What Prometheus scrapes and Grafana shows exists: names and ports against the services themselves."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pd_contracts.names import Role
from pd_contracts.ports import Ports
from pd_contracts.settings import fields
from pd_monitor.app import Monitor
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.settings import Settings
from pd_proxy.metrics import Metrics as ProxyMetrics
from pd_proxy.settings import Settings as ProxySettings

MONITOR = Path(__file__).parents[3] / "monitor"

# vLLM 0.23's own names (v1/metrics/loggers.py); the simulator has them too.
VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:inter_token_latency_seconds_count",
    "vllm:prompt_tokens_by_source_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
}


@pytest.fixture(name="dashboard", scope="module")
def _dashboard() -> dict[str, Any]:
    (path,) = (MONITOR / "grafana" / "dashboards").glob("*.json")
    return dict(json.loads(path.read_text()))


@pytest.fixture(name="scrapes", scope="module")
def _scrapes() -> dict[str, Any]:
    config = yaml.safe_load((MONITOR / "prometheus" / "prometheus.yml").read_text())
    return {job["job_name"]: job for job in config["scrape_configs"]}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def declared(page: str) -> set[str]:
    """The names of all series that a page declares, from its TYPE lines."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return names


def default_of(settings: Any, name: str) -> Any:
    return next(field.default for field in fields(settings) if field.name == name)


def test_every_metric_of_the_dashboard_exists(dashboard: dict[str, Any]) -> None:
    monitor = Monitor(Settings(), WaveBoards([0]))
    existing = (
        declared(monitor.metrics.text().decode())
        | declared(ProxyMetrics(lambda: (), kv_bytes=lambda _: 0).render().decode())
        | VLLM
    )

    used = {name for expr in expressions(dashboard) for name in re.findall(r"\b(?:pd_|vllm:)\w+", expr)}

    assert used - existing == set()
    assert len(used) > 20


def test_panels_use_the_provisioned_datasource_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    provisioned = yaml.safe_load((MONITOR / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken, panel["title"]
        assert box["x"] + box["w"] <= 24
        taken |= cells

    assert used == {source["uid"] for source in provisioned} == {"prometheus"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_services_are_scraped_at_their_default_ports(scrapes: dict[str, Any]) -> None:
    targets = {name: job["static_configs"][0]["targets"] for name, job in scrapes.items() if "static_configs" in job}

    assert targets == {
        "proxy": [f"proxy:{default_of(ProxySettings, 'http_proxy_port')}"],
        "monitor": [f"monitor:{Settings().monitor_port}"],
    }


@pytest.mark.parametrize("role", list(Role))
def test_engines_are_scraped_at_their_default_ports_under_their_role(scrapes: dict[str, Any], role: Role) -> None:
    lookups = scrapes[role]["dns_sd_configs"]

    assert [lookup["port"] for lookup in lookups] == [Ports().http(role, number) for number in range(len(lookups))]
    assert all(role.value in lookup["names"] for lookup in lookups)
    assert {"source_labels": ["job"], "target_label": "role"} in scrapes[role]["relabel_configs"]
