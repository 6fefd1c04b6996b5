"""What the whole chain measures is what the profile says: simulator, proxy, load generator and clock add at most 2%."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support.control import environment, pdctl

from pd_contracts.latency import itl, tpot, ttft_from_send
from pd_contracts.records import REQUESTS, RequestRecord, read_lines

pytestmark = pytest.mark.timed

# Slow enough that 2% of it is far above what five processes compute, with cold caches too, and nothing that depends on load.
PROFILE = """
description = "A fixed profile for a test"
board = "Fixed"

[prefill]
base_ms = 1400
per_token_ms = 0.5

[decode]
base_ms = 160
per_sequence_ms = 0

[power]
prefill = {idle_w = 80, prefill_w = 520}
decode = {idle_w = 80, decode_w = 320}
combined = {idle_w = 80, prefill_w = 520, decode_w = 320}
limit_w = 700
idle_clock_mhz = 345
clock_mhz = 1980
memory_clock_mhz = 3201

[memory]
total_bytes = 150000000000
weights_bytes = 16000000000
kv_bytes_per_token = 131072
kv_tokens = 400000
"""
PROMPT, OUTPUT = 200, 9
PREFILL_S = (1400 + 0.5 * PROMPT) / 1e3
STEP_S = 0.160


def measured(tmp_path: Path, *topology: str, **variables: str) -> list[RequestRecord]:
    """A few requests, one at a time."""
    profile = tmp_path / "fixed.toml"
    profile.write_text(PROFILE)
    env = environment(tmp_path / "state", SIM_PROFILE=str(profile), LOADGEN_LAG_LIMIT_MS="1000", **variables)
    up = pdctl("up", *topology, "--engine", "sim", env=env, cwd=tmp_path)
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        options = {
            "url": f"http://127.0.0.1:{env['HTTP_PROXY_PORT']}",
            "dataset": "random",
            "input-tokens": PROMPT,
            "output-tokens": OUTPUT,
            "rate": 0.3,
            "arrival": "constant",
            "duration": 15,
            "warmup": 1,
            "out": tmp_path / "run",
        }
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        done = subprocess.run(
            [sys.executable, "-m", "pd_loadgen", "run", *words],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        pdctl("down", env=env, cwd=tmp_path)
    return [r for r in read_lines(tmp_path / "run" / REQUESTS, RequestRecord) if not r.warmup]


# A decode engine computes the first token once more, from the KV that it received; prefill has it a step earlier.
@pytest.mark.parametrize(
    ("topology", "first_token", "one_step_more"),
    [("combined", "prefill", False), ("disagg", "prefill", False), ("disagg", "decode", True)],
)
def test_first_token_and_step_times_are_the_profiles(
    tmp_path: Path, topology: str, first_token: str, *, one_step_more: bool
) -> None:
    records = measured(tmp_path, topology, FIRST_TOKEN=first_token)

    assert len(records) >= 4
    first = statistics.median(value for record in records if (value := ttft_from_send(record)) is not None)
    step = statistics.median(value for record in records if (value := tpot(record)) is not None)
    gap = statistics.median(value for record in records for value in itl(record))
    assert first == pytest.approx(PREFILL_S + one_step_more * STEP_S, rel=0.02)
    assert step == pytest.approx(STEP_S, rel=0.02)
    assert gap == pytest.approx(STEP_S, rel=0.02)
