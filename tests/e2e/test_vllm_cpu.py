"""The real vLLM on the CPU, prefill and decode in two containers, KV through ExampleConnector, behind the proxy."""

import json
import random
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.stack import Stack, running

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

LENGTHS = (1, 15, 16, 17, 200, 700)
BLOCK = 32  # tokens a KV block on the CPU; only whole blocks travel
OUTPUT_TOKENS = 12


@pytest.fixture(scope="module")
def stack(vllm_cpu: None) -> Iterator[Stack]:
    """Prefill, decode and, as the reference, one plain engine."""
    services = ("proxy", "tiny-model", "prefill-cpu", "decode-cpu", "combined-cpu")
    with running("pdstack-e2e-cpu", "cpu", "cpu-combined", services=services) as stack:
        yield stack


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        data: bytes = reply.read()
    return data


def prompt(length: int) -> list[int]:
    generator = random.Random(length)
    return [generator.randrange(10, 1000) for _ in range(length)]


def tokens(url: str, length: int, *, stream: bool) -> list[int]:
    body = {
        "model": "tiny",
        "prompt": prompt(length),
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }
    data = post(f"{url}/v1/completions", body)
    if not stream:
        found: list[int] = json.loads(data)["choices"][0]["token_ids"]
        return found
    events = re.findall(rb"^data: (\{.*\})$", data, re.MULTILINE)
    assert data.rstrip().endswith(b"data: [DONE]")
    return [token for event in events for choice in json.loads(event)["choices"] for token in choice["token_ids"] or []]


def transferred(stack: Stack) -> float:
    with urllib.request.urlopen(f"http://{stack.address('decode-cpu')}:20005/metrics", timeout=30) as reply:
        text = reply.read().decode()
    found = re.search(
        r'^vllm:prompt_tokens_by_source_total\{.*source="external_kv_transfer"\} (\S+)$', text, re.MULTILINE
    )
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_and_decode_write_what_plain_vllm_writes(stack: Stack, length: int, *, stream: bool) -> None:
    before = transferred(stack)

    disaggregated = tokens(stack.url, length, stream=stream)

    assert len(disaggregated) == OUTPUT_TOKENS
    assert disaggregated == tokens(f"http://{stack.address('combined-cpu')}:8000", length, stream=stream)
    # Decode took the prompt's whole blocks from the transfer, vLLM's own count says so; its last token is always computed.
    assert transferred(stack) - before == (length - 1) // BLOCK * BLOCK


def test_the_pair_passed_its_canary_before_it_got_requests(stack: Stack) -> None:
    [pair] = json.loads(urllib.request.urlopen(f"{stack.url}/stats", timeout=30).read())["pairs"]

    assert (pair["prefill"], pair["decode"], pair["canary"]) == ("prefill-0", "decode-0", "passed")


def test_a_prompt_may_continue_another_by_the_one_token_that_completes_a_block(stack: Stack) -> None:
    # vLLM's own ExampleConnector finds the shorter prompt's blocks, loads files of the longer one, and dies.
    shorter = prompt(3 * BLOCK)
    for tokens_in in (shorter, [*shorter, 7]):
        body = {"model": "tiny", "prompt": tokens_in, "max_tokens": 4, "temperature": 0, "return_token_ids": True}
        both = [
            post(f"{url}/v1/completions", body) for url in (stack.url, f"http://{stack.address('combined-cpu')}:8000")
        ]
        disaggregated, plain = [json.loads(answer)["choices"][0]["token_ids"] for answer in both]
        assert disaggregated == plain


def test_vllm_bench_serve_runs_unchanged(stack: Stack) -> None:
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        stack.network,
        "--volume",
        f"{stack.project}_tiny-model:/models:ro",
    ]
    command += ["--env", "HF_HUB_OFFLINE=1", "--entrypoint", "vllm", "pdstack/combined:cpu", "bench", "serve"]
    command += ["--base-url", f"http://proxy:{stack.ports['HTTP_PROXY_PORT']}", "--model", "tiny"]
    command += ["--tokenizer", "/models/tiny", "--dataset-name", "random", "--random-input-len", "128"]
    command += ["--random-output-len", "16", "--request-rate", "2", "--num-prompts", "12"]

    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)

    assert result.returncode == 0, result.stderr[-3000:]
    assert re.search(r"^Successful requests:\s+12\s*$", result.stdout, re.MULTILINE), result.stdout
    assert re.search(r"^Total generated tokens:\s+192\s*$", result.stdout, re.MULTILINE), result.stdout


def test_the_openai_client_runs_unchanged(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        whole = client.completions.create(model="tiny", prompt="The keeper lit the lamp", max_tokens=8, temperature=0)
        chunks = list(
            client.completions.create(
                model="tiny", prompt="The keeper lit the lamp", max_tokens=8, temperature=0, stream=True
            )
        )
        chat = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Who lit the lamp?"}], max_tokens=8, temperature=0
        )
        models = [model.id for model in client.models.list()]

    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert chat.usage is not None
    assert chat.usage.completion_tokens >= 1
    assert models == ["tiny"]
    assert "addr" not in whole.id


def test_the_shared_folder_belongs_to_the_engines_alone(stack: Stack) -> None:
    listing = stack.compose("exec", "-T", "prefill-cpu", "stat", "-f", "-c", "%T", "/kv").stdout

    assert listing.strip() == "tmpfs"
