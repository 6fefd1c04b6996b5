"""The notes that Helm prints after an installation, read as a new user."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support.chart import CHART, EXAMPLES, Values, deep, helm, load

SIM: Values = load(next(path for path in EXAMPLES if path.stem == "sim"))
# Helm renders notes only with a cluster; as an object's text they are rendered without.
OBJECT = """{{- define "notes" }}%s{{ end -}}
kind: Notes
metadata: {name: notes}
text: {{ include "notes" . | toJson }}
"""


@pytest.fixture(name="chart", scope="module")
def _chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chart = tmp_path_factory.mktemp("notes") / "chart"
    shutil.copytree(CHART, chart)
    text = (chart / "templates/NOTES.txt").read_text()
    (chart / "templates/notes.yaml").write_text(OBJECT % text)
    return chart


def notes(chart: Path, values: Values) -> str:
    result = helm("template", "demo", str(chart), "--namespace", "here", values=values)
    assert result.returncode == 0, result.stderr
    [found] = [item for item in yaml.safe_load_all(result.stdout) if item and item["kind"] == "Notes"]
    return str(found["text"])


def test_notes_say_what_to_wait_for_and_how_to_ask(chart: Path) -> None:
    said = notes(chart, {"model": {"servedName": "mine"}})

    assert "kubectl --namespace here rollout status deployment/demo-pdstack-proxy" in said
    assert "helm --namespace here test demo" in said
    assert """-d '{"model": "mine", "prompt": "Hello", "max_tokens": 16}'""" in said
    assert "Everybody who can reach the proxy may use it." in said
    assert "SIMULATED" not in said
    assert "Authorization" not in said


def test_a_model_whose_name_has_an_apostrophe_is_quoted_for_the_shell(chart: Path) -> None:
    asked = notes(chart, {"model": {"servedName": "tom's"}}).partition("-d ")[2].partition("\n")[0]

    shown = subprocess.run(["sh", "-c", f"printf %s {asked}"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["model"] == "tom's"


def test_with_keys_notes_ask_with_one(chart: Path) -> None:
    said = notes(chart, {"proxy": {"apiKeysSecret": "clients", "clientKeySecretKey": "client.key"}})

    assert r"get secret clients --output=jsonpath='{.data.client\.key}' | base64 -d)" in said
    assert """-H "Authorization: Bearer $key" \\""" in said
    assert "Everybody" not in said


def test_notes_name_what_was_asked_for_and_nothing_else(chart: Path) -> None:
    said = notes(chart, SIM)
    assert said.startswith("SIMULATED")
    assert "claim demo-pdstack-results" in said
    assert "component=loadgen" in said
    assert "Locust" not in said
    assert "report.html" not in said

    more = notes(chart, deep(SIM, {"loadgen": {"page": {"enabled": True}}, "analysis": {"enabled": True}}))
    assert "port-forward service/demo-pdstack-loadgen 8089" in more
    assert "report.html" in more


@pytest.mark.parametrize("values", [{}, SIM], ids=["default", "sim"])
def test_notes_have_no_blank_ends_and_no_double_blank_lines(chart: Path, values: Values) -> None:
    said = notes(chart, values)
    assert said == said.strip("\n") + "\n"
    assert "\n\n\n" not in said
    assert all(line == line.rstrip() for line in said.splitlines())
