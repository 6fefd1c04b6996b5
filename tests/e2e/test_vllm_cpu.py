"""The real vLLM on the CPU, prefill and decode in two containers, KV through P2pConnector over TCP, behind the proxy."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.answers import random_prompt
from support.stack import Stack, running
from support.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

LENGTHS = (1, 15, 16, 17, 200, 700)
BLOCK = 32  # tokens a KV block on the CPU
OUTPUT_TOKENS = 12
# Greedy in all but name: vLLM refuses several copies with a temperature of 0.
LIKELIEST = {"temperature": 1, "top_k": 1}


@pytest.fixture(scope="module")
def stack(vllm_cpu: None) -> Iterator[Stack]:
    """Prefill, decode and, as the reference, one plain engine."""
    services = ("proxy", "tiny-model", "prefill-cpu", "decode-cpu", "combined-cpu")
    # In the official order vLLM's own count of transferred tokens is exact: all of a prompt but its last one.
    order = {"FIRST_TOKEN": "decode"}
    with running("pdstack-e2e-cpu", "cpu", "cpu-combined", services=services, variables=order) as stack:
        # Healthy is not yet admitted, and the canary's own KV would be counted with the first test's.
        until(lambda: canaries(stack) == ["passed"], 60, "the pair's canary", period_s=0.2)
        yield stack


def canaries(stack: Stack) -> list[str]:
    """What the canary of each pair says."""
    return [pair["canary"] for pair in json.loads(get(f"{stack.url}/stats"))["pairs"]]


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as reply:
        data: bytes = reply.read()
    return data


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        data: bytes = reply.read()
    return data


def choices(url: str, *, stream: bool, **fields: Any) -> dict[int, list[int]]:
    """Output tokens of a completion by the index of the choice."""
    body = {
        "model": "tiny",
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }
    data = post(f"{url}/v1/completions", body | fields)
    answers = [data]
    if stream:
        assert data.rstrip().endswith(b"data: [DONE]")
        answers = re.findall(rb"^data: (\{.*\})$", data, re.MULTILINE)
    found: dict[int, list[int]] = {}
    for choice in (choice for answer in answers for choice in json.loads(answer)["choices"]):
        found.setdefault(choice["index"], []).extend(choice["token_ids"] or [])
    return found


def tokens(url: str, length: int, *, stream: bool) -> list[int]:
    return choices(url, stream=stream, prompt=random_prompt(length))[0]


def transferred(stack: Stack) -> float:
    text = get(f"http://{stack.address('decode-cpu')}:20005/metrics").decode()
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
    # Decode took the prompt from the transfer, vLLM's own count says so; its last token is always computed.
    assert transferred(stack) - before == length - 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "sampling", [{}, {"n": 2, **LIKELIEST}, {"n": 2, "temperature": 1, "seed": 11}], ids=["greedy", "n=2", "n=2, seed"]
)
@pytest.mark.parametrize("lengths", [(200,), (200, 17, 96)], ids=["1 prompt", "3 prompts"])
def test_several_sequences_of_one_request_keep_their_places(
    stack: Stack, lengths: tuple[int, ...], sampling: dict[str, Any], *, stream: bool
) -> None:
    before = transferred(stack)
    asked = {"prompt": [random_prompt(length) for length in lengths], **sampling}

    disaggregated = choices(stack.url, stream=stream, **asked)

    assert disaggregated == choices(f"http://{stack.address('combined-cpu')}:8000", stream=stream, **asked)
    assert transferred(stack) > before
    copies = sampling.get("n", 1)
    assert sorted(disaggregated) == list(range(len(lengths) * copies))
    different = len(lengths) * (copies if "seed" in sampling else 1)
    assert len({tuple(found) for found in disaggregated.values()}) == different, "places must be told apart"
    if "seed" not in sampling:
        alone = [tokens(stack.url, length, stream=False) for length in lengths for _ in range(copies)]
        assert [disaggregated[index] for index in sorted(disaggregated)] == alone


def test_vllm_itself_refuses_two_greedy_copies_and_the_client_hears_why(stack: Stack) -> None:
    said = []
    for url in (stack.url, f"http://{stack.address('combined-cpu')}:8000"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            choices(url, stream=False, prompt=random_prompt(17), n=2)
        said.append((caught.value.code, json.loads(caught.value.read())["error"]["message"]))
    assert said[0] == said[1]
    assert said[0][0] == 400


def responded(url: str, text: str, *, stream: bool) -> tuple[str, list[int], int]:
    """Text, output tokens and the number of the prompt's tokens of a response, as the openai client reads it."""
    extra = {"ignore_eos": True, "enable_response_messages": True}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        asked = {"model": "tiny", "input": text, "max_output_tokens": OUTPUT_TOKENS, "temperature": 0}
        found: Any = client.responses.create(**asked, stream=stream, extra_body=extra)  # type: ignore[call-overload]
        if stream:
            events = list(found)
            assert [event.type for event in (*events[:2], events[-1])] == [
                "response.created",
                "response.in_progress",
                "response.completed",
            ]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            written = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            assert {event.response.id for event in (*events[:2], events[-1])} == {events[0].response.id}
            found = events[-1].response
            assert found.output_text == written
    assert re.fullmatch(r"resp_[0-9a-f]+", found.id)
    return (
        found.output_text,
        [token for said in found.output_messages for token in said["tokens"]],
        found.usage.input_tokens,
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("words", [1, 60, 300])
def test_a_response_is_what_plain_vllm_writes(stack: Stack, words: int, *, stream: bool) -> None:
    before = transferred(stack)
    text = " ".join(f"lamp {number}" for number in range(words))

    text_of, tokens_of, prompt_tokens = responded(stack.url, text, stream=stream)

    assert (text_of, tokens_of, prompt_tokens) == responded(
        f"http://{stack.address('combined-cpu')}:8000", text, stream=stream
    )
    assert len(tokens_of) == OUTPUT_TOKENS
    assert transferred(stack) - before == prompt_tokens - 1


def test_the_pair_passed_its_canary_before_it_got_requests(stack: Stack) -> None:
    [pair] = json.loads(get(f"{stack.url}/stats"))["pairs"]

    assert (pair["prefill"], pair["decode"], pair["canary"]) == ("prefill-0", "decode-0", "passed")
    assert pair["transport"] == "tcp"


def test_a_prompt_may_continue_another_by_the_one_token_that_completes_a_block(stack: Stack) -> None:
    # vLLM's own ExampleConnector finds the shorter prompt's blocks, loads files of the longer one, and dies.
    shorter = random_prompt(3 * BLOCK)
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
