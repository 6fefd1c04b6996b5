"""On two GPUs: prefill and decode behind the proxy write what plain vLLM writes, or get no request at all.

Run by hand where vLLM 0.23 is installed: `pytest -m gpu tests/gpu`, or `-k p2p-qwen3` for one deployment. The folder in OUT gets
the engines' logs. Engines are local processes, and everything ends by itself. `REHEARSE=1` runs the same on simulators.
"""

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import random_prompt
from support.gpu import CASES, REHEARSAL, Case, Deployment, Fleet, gpus, post

from pd_contracts.names import Connector

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

LENGTHS = (15, 16, 17, 512, 4000)
OUTPUT_TOKENS = 24
VERDICT_S = 120
PARITY = [name for name, case in CASES.items() if case.reference is not None]
REFUSED = [name for name, case in CASES.items() if case.reference is None]


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Every deployment that a selected test needs, started at once."""
    if gpus() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    selected = {item.callspec.params.get("deployment") for item in request.session.items if hasattr(item, "callspec")}
    scratch = tmp_path_factory.mktemp("gpu")
    fleet = Fleet(Path(os.environ.get("OUT") or scratch), scratch)
    try:
        fleet.start(name for name in CASES if name in selected and missing(CASES[name]) is None)
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Deployment]:
    """The processes of the case that the test is for; they end with its last test."""
    reason = missing(CASES[request.param])
    if reason is not None:
        pytest.skip(reason)
    found = fleet.deployments[request.param]
    yield found
    found.processes.stop()


def missing(case: Case) -> str | None:
    if case.connector is Connector.NIXL and not REHEARSAL and importlib.util.find_spec("nixl") is None:
        return "needs the package nixl"
    return None


def completion(url: str, prompt: list[int], **extra: Any) -> dict[str, Any]:
    """The first choice of a greedy completion of 24 tokens."""
    status, body = post(url, prompt, **{"tokens": OUTPUT_TOKENS, **extra})
    assert status == 200, body
    choice: dict[str, Any] = body["choices"][0]
    return choice


def gap_to_best(url: str, prompt: list[int], token: int) -> float:
    """How much less likely than its first choice plain vLLM finds `token` after `prompt`, in nats; inf if it is not near."""
    choice = completion(url, prompt, tokens=1, logprobs=5, return_tokens_as_token_ids=True)
    likely = choice["logprobs"]["top_logprobs"][0]
    name = f"token_id:{token}"
    return max(likely.values()) - likely[name] if name in likely else float("inf")


@pytest.mark.parametrize("deployment", PARITY, indirect=True)
@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_and_decode_write_what_plain_vllm_writes(deployment: Deployment, fleet: Fleet, length: int) -> None:
    prompt = random_prompt(length)
    plain = fleet.reference(deployment.case)
    deployment.wait_until_ready()

    written = completion(deployment.proxy, prompt)["token_ids"]
    expected = completion(plain, prompt)["token_ids"]

    assert len(written) == OUTPUT_TOKENS
    same = next((i for i, pair in enumerate(zip(written, expected, strict=True)) if pair[0] != pair[1]), OUTPUT_TOKENS)
    # The last prompt token is computed in a step of its own on decode and within the prompt on plain vLLM, so sums are
    # rounded otherwise. Where they part, it must be between two tokens that plain vLLM finds as good as equal.
    if same < OUTPUT_TOKENS:
        assert same > 0
        assert gap_to_best(plain, prompt + expected[:same], written[same]) < deployment.case.tie_nats


@pytest.mark.parametrize("deployment", PARITY, indirect=True)
def test_what_was_compared_was_disaggregated(deployment: Deployment) -> None:
    deployment.wait_until_ready()
    before = sent(deployment)

    for length in LENGTHS[:2]:
        completion(deployment.proxy, random_prompt(length))

    after = sent(deployment)
    assert {role: after[role] - before[role] for role in after} == {"prefill": 2, "decode": 2}
    assert [pair["canary"] for pair in deployment.stats()["pairs"]] == ["passed"]


def sent(deployment: Deployment) -> dict[str, int]:
    return {instance["role"]: instance["requests"] for instance in deployment.stats()["instances"]}


@pytest.mark.parametrize("deployment", REFUSED, indirect=True)
def test_the_canary_refuses_a_decode_that_ignores_its_kv(deployment: Deployment) -> None:
    deployment.wait_for_engines()
    deadline = time.monotonic() + VERDICT_S
    while [pair["canary"] for pair in deployment.stats()["pairs"]] in ([], ["unknown"]):
        assert time.monotonic() < deadline, deployment.stats()
        time.sleep(0.5)

    (pair,) = deployment.stats()["pairs"]
    assert pair["canary"] == "wrong", pair
    assert "decode wrote tokens" in pair["reason"]
    status, body = post(deployment.proxy, random_prompt(512), OUTPUT_TOKENS)
    assert status == 503, body
    assert "canary" in body["error"]["message"]
    if not REHEARSAL:  # the pair was refused for what this test is about
        assert "Using V2 Model Runner" in deployment.processes.log(f"{deployment.case.name}-decode")
