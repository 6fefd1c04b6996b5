"""The simulated stack in containers: load from Locust's page, power from the exporter, the report from the analysis image."""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.stack import Stack, running
from support.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.loads(reply.read())


@pytest.fixture(scope="module")
def stack(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    results = tmp_path_factory.mktemp("results")
    with running("pdstack-e2e-sim", "sim", variables={"RESULTS_DIR": str(results)}) as stack:
        yield stack


def test_the_profile_comes_up_ready(stack: Stack) -> None:
    deadline = time.monotonic() + 30
    while not (stats := get(f"{stack.url}/stats"))["ready"]:
        assert time.monotonic() < deadline, stats
        time.sleep(0.3)

    assert {instance["name"] for instance in stats["instances"]} == {"prefill-0", "decode-0"}
    monitor = f"http://127.0.0.1:{stack.ports['MONITOR_PORT']}"
    roles = {"prefill", "decode"}  # a board is known from the first answer of its engine
    until(lambda: {gpu["role"] for gpu in get(f"{monitor}/gpus")} == roles, 30, "both boards")


def test_a_load_from_the_web_page_becomes_a_report(stack: Stack) -> None:
    page = f"http://127.0.0.1:{stack.ports['LOCUST_PORT']}"
    results = Path(stack.environment["RESULTS_DIR"])
    fields = {
        "user_count": "1",
        "spawn_rate": "1",
        "host": f"http://proxy:{stack.ports['HTTP_PROXY_PORT']}",
        "rate": "4",
        "duration": "5",
        "input_tokens": "64",
        "output_tokens": "16",
    }
    form = urllib.parse.urlencode(fields).encode()
    with urllib.request.urlopen(f"{page}/swarm", data=form, timeout=30) as reply:
        assert json.loads(reply.read())["success"] is True

    deadline = time.monotonic() + 60
    while not (
        manifests := [path for path in results.rglob("manifest.json") if json.loads(path.read_text())["complete"]]
    ):
        assert time.monotonic() < deadline, stack.compose("logs", "loadgen").stdout[-3000:]
        time.sleep(0.5)
    manifest = json.loads(manifests[0].read_text())
    assert manifest["deployment"]["simulated"] is True
    names = {row["name"] for row in get(f"{page}/stats/requests")["stats"]}
    assert {"TTFT", "TPOT"} <= names

    stack.compose("run", "--rm", "--build", "analysis")

    report = (results / "report" / "report.html").read_text()
    assert "SIMULATED" in report
    assert (results / "report" / "report.md").exists()
