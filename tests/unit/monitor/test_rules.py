"""Recording rules and alerts do what they say, by Prometheus's own tool, over metrics that exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pd_monitor.app import Monitor
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.settings import Settings
from pd_proxy.metrics import Metrics as ProxyMetrics

PROMETHEUS = Path(__file__).parents[3] / "monitor" / "prometheus"
# vLLM 0.23's own names (v1/metrics/loggers.py); the simulator has them too.
VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:generation_tokens_total",
}


@pytest.fixture(name="rules", scope="module")
def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(name="promtool", scope="module")
def _promtool() -> str:
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: install Debian's package prometheus, or name one in PROMTOOL")
    return found


def run(promtool: str, *arguments: str) -> None:
    result = subprocess.run(
        [promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_rules_record_and_alert_as_their_tests_say(promtool: str) -> None:
    run(promtool, "test", "rules", "rules_test.yml")


def test_prometheus_reads_configuration_and_rules(promtool: str) -> None:
    run(promtool, "check", "config", "prometheus.yml")


def test_every_alert_is_tested_and_says_what_to_do(rules: list[dict[str, Any]]) -> None:
    tested = set(re.findall(r"alertname: (\w+)", (PROMETHEUS / "rules_test.yml").read_text()))
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}

    assert set(alerts) == tested
    assert all({"summary", "remedy"} <= rule["annotations"].keys() for rule in alerts.values())


def test_every_metric_of_a_rule_exists(rules: list[dict[str, Any]]) -> None:
    monitor = Monitor(Settings(), WaveBoards([0]))
    pages = monitor.metrics.text().decode() + ProxyMetrics(lambda: (), kv_bytes=lambda _: 0).render().decode()
    existing = VLLM | {"up"}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", pages, re.MULTILINE):
        existing |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}

    used = {name for rule in rules for name in re.findall(r"\b(?:pd_|vllm:)\w+|\bup\b", rule["expr"])}

    assert used - existing == set()
    assert len(used) >= 10
