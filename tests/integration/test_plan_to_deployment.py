"""From a question to engines that serve: pd-plan, `pdctl up --plan`, a request, `pdctl down`."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from support.control import environment, pdctl

from pd_planner.main import main
from pd_planner.search import breakeven

QUESTION = "--input-tokens 2048 --output-tokens 128 --gpus 2 --cell 2 --connectors p2p --draws 2 --quiet --goodput ttft:2000 tpot:6.6"


ADAPTIVE = "--input-tokens 2048 --output-tokens 128 --gpus 2 --cell 2 --connectors p2p --draws 3 --quiet --goodput ttft:300 tpot:10"


def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("PROMPTS", (512, 2048)), ("OUTPUTS", (32, 128)), ("RATES", (0.5, 0.9))):
        monkeypatch.setattr(breakeven, name, few)


def test_what_is_planned_is_started_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_points(monkeypatch)
    assert main([*QUESTION.split(), "--out", str(tmp_path / "plan")]) == 0
    env = environment(tmp_path / "state")

    try:
        up = pdctl("up", "--plan", "plan/plan.json", "--engine", "sim", env=env, cwd=tmp_path)
        assert up.returncode == 0, up.stdout + up.stderr
        assert "1P1D is ready" in up.stdout
        smoke = pdctl("smoke", env=env, cwd=tmp_path)
        assert smoke.returncode == 0, smoke.stdout
        assert "prefill-0 → decode-0: queue" in smoke.stdout
    finally:
        pdctl("down", env=env, cwd=tmp_path)


def test_planned_adaptive_roles_are_started_with_what_the_proxy_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_points(monkeypatch)
    assert main([*ADAPTIVE.split(), "--any-topology", "--out", str(tmp_path / "plan")]) == 0
    env = environment(tmp_path / "state")

    try:
        up = pdctl("up", "--plan", "plan/plan.json", "--engine", "sim", env=env, cwd=tmp_path)
        assert up.returncode == 0, up.stdout + up.stderr
        address = re.findall(r"http://\S+", up.stdout)[0]
        with urllib.request.urlopen(f"{address}/stats") as answer:
            routing = json.load(answer)["routing"]
        assert (routing["routing"], routing["ttft_slo_ms"], routing["tpot_slo_ms"]) == ("adaptive", 300, 10)
        assert len(routing["engines"]) == 2
        smoke = pdctl("smoke", env=env, cwd=tmp_path)
        assert smoke.returncode == 0, smoke.stdout
    finally:
        pdctl("down", env=env, cwd=tmp_path)
