"""`benchmarks/monitor/recorder_effect.py` as it is run on a GPU machine, against a simulated engine and the monitor of its board."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from support.monitor import monitor_process
from support.simulator import settings_for, spawned

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "monitor" / "recorder_effect.py"


async def run(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_pairs_are_measured_with_a_recording_in_one_half_and_none_is_left(tmp_path: Path) -> None:
    out = tmp_path / "effect.json"
    async with spawned(settings_for(model="m")) as engine:
        with monitor_process(MONITOR_BACKEND="simulated", SIM_BOARDS=f"{engine.url}/sim/board") as monitor:
            await asyncio.to_thread(monitor.wait_ready)
            options = ["--url", engine.url, "--model", "m", "--monitor", f"http://127.0.0.1:{monitor.port}"]
            load = ["--pairs", "3", "--seconds", "0.6", "--output-tokens", "24", "--concurrency", "2"]
            status, said = await run(*options, *load, "--limit", "1000", "--out", str(out))
            left = json.loads(monitor.request("GET", "/recordings")[1])

    assert status == 0, said
    found: dict[str, Any] = json.loads(out.read_text())
    assert left == []
    assert [(pair["on"]["recorded"], pair["off"]["recorded"]) for pair in found["pairs"]] == [(True, False)] * 3
    assert all(pair["on"]["samples"] > 3 and pair["off"]["samples"] == 0 for pair in found["pairs"])
    assert len({half["tokens"] for pair in found["pairs"] for half in pair.values()}) == 1
    assert found["tpot_difference_percent"]["mean"] is not None
    assert "fewer than 8 pairs" in said


async def test_a_server_that_refuses_is_a_sentence_and_no_recording_is_left() -> None:
    async with spawned(settings_for(model="m")) as engine:
        with monitor_process(MONITOR_BACKEND="simulated") as monitor:
            await asyncio.to_thread(monitor.wait_ready)
            address = f"http://127.0.0.1:{monitor.port}"
            status, said = await run("--url", engine.url, "--model", "other", "--monitor", address)
            left = json.loads(monitor.request("GET", "/recordings")[1])

    assert status == 2
    assert "does not exist" in said
    assert "Traceback" not in said
    assert left == []
