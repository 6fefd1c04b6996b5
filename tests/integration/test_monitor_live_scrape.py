"""Dashboards, rules and alerts over a live stack: every metric is on a page, and a real Prometheus answers every expression."""

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.live import Live, answering, live_stack

from pd_contracts.free_ports import free_port

MONITOR = Path(__file__).parents[2] / "monitor"
NAME = re.compile(r"\b(?:pd_|vllm:)\w+")
SERVED_S = 9.0  # so that rates over 5 s have enough samples of one second

# What has no value while nothing goes wrong, or before a whole minute is over.
QUIET = (
    "pd_proxy_failures_total", "pd_proxy_drains_total", "pd_proxy_rejected_pings_total", "pd_proxy_retries_total",
    "pd_gpu_clock_event_active", "pd_gpu_energy_closure_ratio", "pd_exporter_read_errors_total", "pd_gpu_nvlink_bytes_total",
    "pd_gpu_pcie_bytes_total",
)  # fmt: skip


def dashboard() -> dict[str, str]:
    """Title and number of each panel's targets, with the expression."""
    (path,) = (MONITOR / "grafana" / "dashboards").glob("*.json")
    panels = json.loads(path.read_text())["panels"]
    return {
        f"{panel['title']} #{number}": target["expr"].replace("$__rate_interval", "5s").replace("[1m]", "[5s]")
        for panel in panels
        for number, target in enumerate(panel.get("targets", []))
    }


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITOR / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(name="live")
async def _live() -> AsyncIterator[Live]:
    async with live_stack() as live:
        yield live


async def test_every_metric_of_dashboards_and_rules_is_on_a_live_page(live: Live) -> None:
    await live.serve(3)

    there = set()
    for job in live.targets:
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", await live.page(job), re.MULTILINE):
            there |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    wanted = {
        name for text in (*dashboard().values(), *(rule["expr"] for rule in rules())) for name in NAME.findall(text)
    }

    assert len(wanted) > 35
    assert wanted - there == set()


@contextlib.asynccontextmanager
async def prometheus(live: Live, folder: Path) -> AsyncIterator[str]:
    """The real one, with the rules as they are, scraping the live pages every second under the jobs and labels of prometheus.yml."""
    program = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus: install Debian's package prometheus, or name the program in PROMETHEUS")
    scrapes = [
        {
            "job_name": job,
            "static_configs": [{"targets": [target], "labels": {"role": job} if job in {"prefill", "decode"} else {}}],
        }
        for job, target in live.targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITOR / "prometheus" / "rules.yml")],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        await answering(live.session, f"http://127.0.0.1:{port}/-/ready", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def ask(live: Live, url: str, path: str, **parameters: str) -> Any:
    async with live.session.get(f"{url}/api/v1/{path}", params=parameters) as answer:
        said = await answer.json()
    assert said["status"] == "success", said
    return said["data"]


async def test_a_real_prometheus_scrapes_the_stack_and_answers_every_panel(live: Live, tmp_path: Path) -> None:
    async with prometheus(live, tmp_path) as url:
        async with asyncio.timeout(SERVED_S + 30):
            for _ in range(int(SERVED_S / 0.5)):
                await live.serve(1)
                await asyncio.sleep(0.4)
        targets = (await ask(live, url, "targets"))["activeTargets"]
        found = {name: (await ask(live, url, "query", query=text))["result"] for name, text in dashboard().items()}
        recorded = {
            rule["record"]: (await ask(live, url, "query", query=rule["record"]))["result"]
            for rule in rules()
            if "record" in rule
        }
        state = (await ask(live, url, "rules"))["groups"]

    assert {target["labels"]["job"]: target["health"] for target in targets} == dict.fromkeys(live.targets, "up")
    texts = dashboard()
    empty = [name for name, result in found.items() if not result and not any(quiet in texts[name] for quiet in QUIET)]
    assert empty == []
    assert [name for name, result in recorded.items() if not result] == []
    evaluated = [rule for group in state for rule in group["rules"]]
    assert [rule["name"] for rule in evaluated if rule["health"] != "ok"] == []
    # Nothing is wrong with this stack, so no alert of it may burn.
    assert [rule["name"] for rule in evaluated if rule["type"] == "alerting" and rule["state"] == "firing"] == []
