"""On one GPU: two engines with P2pConnector, over mapped memory, write what plain vLLM writes, with either runner, graphs or none, prefix caching or none.

Run by hand where vLLM is installed: `pytest -m gpu tests/gpu/test_connector.py`, or `-k v2-graphs` for some. OUT is the folder for the engines' logs.
`REHEARSE=1` runs it on the CPU.
"""

import contextlib
import itertools
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import random_prompt
from support.connector_gpu import CASES, KV_SETTINGS, REHEARSAL, Couple, Fleet, GpuEngine, gap_to_best, has_gpu
from support.vllm_engines import Later, ask

from pd_connector.settings import load

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

# Around blocks of 16 tokens, pages, and steps of 512 tokens.
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 511, 513, 1000, 1500, 3000)
ORDERS = ("official", "decode first", "named late", "token follows")
OUTPUT_TOKENS = 16


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Every pair that a selected test needs."""
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    selected = {item.callspec.params.get("couple") for item in request.session.items if hasattr(item, "callspec")}
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else tmp_path_factory.mktemp("gpu")
    found = Fleet([name for name in CASES if name in selected], folder)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def couple(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Couple]:
    """The pair of a case; it ends with the last test that needs it."""
    found = fleet.couples[request.param]
    yield found
    found.stop()


def both(order: str, p: GpuEngine, d: GpuEngine, prompt: list[int]) -> list[int]:
    """Prefill on one engine, decode on the other."""
    key = uuid.uuid4().hex
    prefill = {"key": key, **({} if order == "named late" else {"to": [d.kv]})}
    decode: dict[str, Any] = {"key": key, "from": p.kv}
    if order == "token follows":
        decode |= {"tokens": len(prompt), "token": "follows"}
        rest = Later(ask, d, [*prompt, 5], decode, max_tokens=OUTPUT_TOKENS - 1)
        first = ask(p, prompt, prefill, max_tokens=1)
        return [*first.tokens, *rest.result().tokens]
    if order == "decode first":
        whole = Later(ask, d, prompt, decode, max_tokens=OUTPUT_TOKENS)
        ask(p, prompt, prefill | {"first": "kv"}, max_tokens=1)
        return list(whole.result().tokens)
    ask(p, prompt, prefill, max_tokens=1)
    return ask(d, prompt, decode, max_tokens=OUTPUT_TOKENS).tokens


def loaded(engine: GpuEngine) -> float:
    ask(engine, [1, 2], max_tokens=1)
    return engine.metrics().get('pd_kv_loads_total outcome="loaded"', 0)


def waits(engine: GpuEngine) -> float:
    """How many steps have waited for KV that was announced."""
    return engine.metrics().get('pd_kv_stage_seconds_count stage="in step"', 0)


@pytest.mark.parametrize("couple", list(CASES), indirect=True)
def test_two_engines_write_what_one_writes(couple: Couple, record_property: Any) -> None:
    p, d = couple.ready()
    # A cache that decode filled from elsewhere is no reference; prefill's own is.
    reference = p if couple.case.caches else d
    before, ties, began = loaded(d), 0, time.monotonic()
    for index, length in enumerate(LENGTHS):
        order, prompt = ORDERS[index % len(ORDERS)], random_prompt(length, 0)
        written = both(order, p, d, prompt)
        expected = ask(reference, prompt, max_tokens=OUTPUT_TOKENS).tokens
        assert len(written) == OUTPUT_TOKENS
        same = next((i for i, two in enumerate(zip(written, expected, strict=True)) if two[0] != two[1]), None)
        if same is not None:
            # The last prompt token is computed alone on decode and within the prompt on plain vLLM, so sums are rounded otherwise.
            ties += 1
            gap = gap_to_best(reference, prompt + expected[:same], written[same])
            assert gap < couple.case.tie_nats, (length, order, same, gap)
    took, transport = time.monotonic() - began, "tcp" if REHEARSAL else couple.case.transport
    moved = loaded(d) - before
    assert moved >= len(LENGTHS) - 2, (
        "of one or two tokens there may be nothing to load; all else must come from prefill"
    )
    assert ties <= 4
    settings = load(KV_SETTINGS)
    assert bool(waits(d)) == (settings.soon_wait_ms > 0 and transport in settings.soon_transports)
    record_property("waits", waits(d))
    record_property("loads", moved)
    record_property("ties", ties)
    record_property("seconds", round(took, 1))
    transports = {name for name in d.metrics() if name.startswith("pd_kv_received_bytes_total")}
    assert transports == {f'pd_kv_received_bytes_total transport="{transport}"'}


@pytest.mark.parametrize("couple", list(CASES), indirect=True)
def test_many_at_once_and_nothing_is_left(couple: Couple) -> None:
    p, d = couple.ready()
    prompts = [random_prompt(40 + 61 * index, 1) for index in range(16)]
    running = [
        Later(both, order, p, d, prompt) for order, prompt in zip(itertools.cycle(ORDERS), prompts, strict=False)
    ]
    found = [one.result() for one in running]
    assert all(len(tokens) == OUTPUT_TOKENS for tokens in found)
    nothing_left(p, d)


def nothing_left(*engines: GpuEngine) -> None:
    """No page is in use; metrics come with steps, so each engine makes one."""
    deadline = time.monotonic() + 10
    while True:
        states = [f'state="{state}"' for state in ("gathering", "gathered", "moving", "landed", "loading", "limbo")]
        left: dict[str, float] = {}
        for engine in engines:
            ask(engine, [1, 2], max_tokens=1)
            left |= {name: value for name, value in engine.metrics().items() if value and name.endswith(tuple(states))}
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize("couple", list(CASES), indirect=True)
def test_kill_9_of_one_in_mid_transfer_costs_the_other_nothing(couple: Couple) -> None:
    p, d = couple.ready()
    dies, lives = (p, d) if list(CASES).index(couple.case.name) % 2 else (d, p)
    prompts = [random_prompt(2500 + index, 2) for index in range(6)]
    own = random_prompt(100, 3)
    expected = ask(lives, own, max_tokens=64).tokens
    running = [
        Later(both, order, p, d, prompt) for order, prompt in zip(itertools.cycle(ORDERS), prompts, strict=False)
    ]
    streams = [Later(ask, lives, own, stream=True, max_tokens=64) for _ in range(3)]
    time.sleep(0.15)
    os.killpg(dies.process.pid, signal.SIGKILL)
    began = time.monotonic()

    for one in streams:
        written = one.result().tokens
        same = next((i for i, two in enumerate(zip(written, expected, strict=True)) if two[0] != two[1]), None)
        assert same is None or gap_to_best(lives, own + expected[:same], written[same]) < couple.case.tie_nats
    for one in running:  # each of them had a half on the engine that is gone
        with contextlib.suppress(OSError):
            one.result()
    assert time.monotonic() - began < (120 if REHEARSAL else 15)
    nothing_left(lives)
