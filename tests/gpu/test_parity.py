"""On two GPUs: prefill and decode with P2P NCCL, behind the proxy, write what plain vLLM writes.

Run by hand where vLLM 0.23 is installed: `pytest -m gpu tests/gpu`. Engines are local processes; everything ends by itself.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.stack import ROOT, free_ports

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

LENGTHS = (15, 16, 17, 512, 4000)
OUTPUT_TOKENS = 24
START_S = 300
TIE_NATS = 0.02
# The reference computes with the kernels that decode uses. With vLLM's default runner and graphs, sums are rounded
# otherwise, and a model of random weights soon has two tokens that are as good as equal.
KERNELS = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "ENGINE_ARGS": '--compilation-config \'{"cudagraph_mode":"FULL_DECODE_ONLY"}\'',
}


def gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.count("GPU ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("OUT", tmp_path_factory.mktemp("gpu")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers, random weights with a standard deviation of 0.06."""
    if gpus() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    path = tmp_path_factory.mktemp("model")
    text = ROOT / "services/engine/src/pd_engine/tiny_model.py"  # prompts are token ids: any text makes a tokenizer
    subprocess.run([sys.executable, "-m", "pd_engine.tiny_model", path, text, "8", "1024"], check=True)
    return path


class Processes:
    """Local processes with their logs; the group of each is ended at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **variables: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            environment = {**os.environ, **variables}
            self.running[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for(self, url: str) -> None:
        deadline = time.monotonic() + START_S
        while not answers(url):
            for name, process in self.running.items():
                assert process.poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
            assert time.monotonic() < deadline, url
            time.sleep(0.5)

    def stop(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def deployment(model: Path, folder: Path) -> Iterator[dict[str, str]]:
    """A proxy, prefill on GPU 0, decode on GPU 1, and plain vLLM beside prefill as the reference."""
    proxy, discovery, prefill, decode, combined, prefill_kv, decode_kv = map(str, free_ports(7))
    common = {
        "MODEL": str(model),
        "SERVED_MODEL_NAME": "random",
        "MAX_MODEL_LEN": "4096",
        "DTYPE": "float16",
        "VLLM_HOST_IP": "127.0.0.1",
        "PROXY_PORT": discovery,
        "PREFILL_HTTP_PORT": prefill,
        "DECODE_HTTP_PORT": decode,
        "PREFILL_KV_PORT": prefill_kv,
        "DECODE_KV_PORT": decode_kv,
        "COMBINED_HTTP_PORT": combined,
    }
    engine = (sys.executable, "-m", "pd_engine")
    processes = Processes(folder)
    try:
        processes.start("proxy", sys.executable, "-m", "pd_proxy", HTTP_PROXY_PORT=proxy, PROXY_PORT=discovery)
        roles = {"prefill": ("0", "0.4"), "decode": ("1", "0.5")}
        for role, (gpu, memory) in roles.items():
            variables = {**common, "PD_ROLE": role, "CUDA_VISIBLE_DEVICES": gpu, "GPU_MEMORY_UTILIZATION": memory}
            processes.start(role, *engine, **variables)
        processes.wait_for(f"http://127.0.0.1:{prefill}/health")
        # After prefill, so that the two do not measure one GPU's free memory at the same time.
        plain = {
            **common,
            "PD_ROLE": "combined",
            "CUDA_VISIBLE_DEVICES": "0",
            "GPU_MEMORY_UTILIZATION": "0.3",
            **KERNELS,
        }
        processes.start("combined", *engine, **plain, PROXY_HOST="127.0.0.1")
        processes.wait_for(f"http://127.0.0.1:{combined}/health")
        processes.wait_for(f"http://127.0.0.1:{proxy}/ready")
        yield {"proxy": f"http://127.0.0.1:{proxy}", "combined": f"http://127.0.0.1:{combined}"}
    finally:
        processes.stop()


def completion(url: str, prompt: list[int], **extra: Any) -> dict[str, Any]:
    """The first choice of a greedy completion of 24 tokens."""
    body: dict[str, Any] = {"model": "random", "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, **extra}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        choice: dict[str, Any] = json.load(reply)["choices"][0]
    return choice


def gap_to_best(url: str, prompt: list[int], token: int) -> float:
    """How much less likely than its first choice plain vLLM finds `token` after `prompt`, in nats; inf if it is not near."""
    choice = completion(url, prompt, max_tokens=1, logprobs=5, return_tokens_as_token_ids=True)
    likely = choice["logprobs"]["top_logprobs"][0]
    name = f"token_id:{token}"
    return max(likely.values()) - likely[name] if name in likely else float("inf")


@pytest.mark.parametrize("length", LENGTHS)
def test_p2p_nccl_writes_what_plain_vllm_writes(deployment: dict[str, str], length: int) -> None:
    generator = random.Random(length)
    prompt = [generator.randrange(10, 1000) for _ in range(length)]

    written = completion(deployment["proxy"], prompt)["token_ids"]
    expected = completion(deployment["combined"], prompt)["token_ids"]

    assert len(written) == OUTPUT_TOKENS
    same = next((i for i, pair in enumerate(zip(written, expected, strict=True)) if pair[0] != pair[1]), OUTPUT_TOKENS)
    # The last prompt token is computed in a step of its own on decode and within the prompt on plain vLLM, so sums are
    # rounded otherwise. Where they part, it must be between two tokens that plain vLLM finds as good as equal.
    if same < OUTPUT_TOKENS:
        assert same > 0
        assert gap_to_best(deployment["combined"], prompt + expected[:same], written[same]) < TIE_NATS


def test_what_was_compared_was_disaggregated(deployment: dict[str, str]) -> None:
    with urllib.request.urlopen(f"{deployment['proxy']}/stats", timeout=10) as reply:
        sent = {instance["role"]: instance["requests"] for instance in json.load(reply)["instances"]}

    assert sent["prefill"] == sent["decode"] == len(LENGTHS)
    assert sent["combined"] == 0
