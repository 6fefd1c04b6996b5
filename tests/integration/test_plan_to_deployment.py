"""From a question to engines that serve: pd-plan, `pdctl up --plan`, a request, `pdctl down`."""

from pathlib import Path

import pytest
from support.control import environment, pdctl

from pd_planner.main import main
from pd_planner.search import breakeven

QUESTION = "--input-tokens 2048 --output-tokens 128 --gpus 2 --cell 2 --connectors p2p --draws 2 --quiet --goodput ttft:2000 tpot:6.6"


def test_what_is_planned_is_started_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("PROMPTS", (512, 2048)), ("OUTPUTS", (32, 128)), ("RATES", (0.5, 0.9))):
        monkeypatch.setattr(breakeven, name, few)
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
