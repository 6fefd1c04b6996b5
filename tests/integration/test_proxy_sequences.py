"""Requests for several sequences: each choice gets the words that a plain engine gives to its index, streamed or whole."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.proxy import Reply, RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts import sse
from pd_contracts.names import Connector, Role

TEXTS = ["one", "the keeper lit the lamp and went down to the boats again", "two lamps"]
IDS = [list(range(300, 300 + length)) for length in (40, 3, 70)]
PROMPTS = {
    "a text": TEXTS[1],
    "texts": TEXTS,
    "ids": IDS[0],
    "lists of ids": IDS,
    "equal ones": [TEXTS[0], TEXTS[0]],
}
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
COPIES = pytest.mark.parametrize("n", [1, 2, 3])
OUTPUT = 5


@pytest.fixture(name="connector")
def _connector() -> Connector:
    return Connector.P2P_NCCL


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(ping_ttl_s=3.5) as proxy:
        yield proxy


@pytest.fixture(name="engines")
async def _engines(proxy: RunningProxy, connector: Connector, tmp_path: Path) -> AsyncIterator[dict[str, Simulator]]:
    """A pair that the proxy serves with, and a plain engine that it does not know."""
    port = proxy.settings.proxy_port
    async with AsyncExitStack() as stack:
        found = {"plain": await stack.enter_async_context(running(settings_for(), fast_profile()))}
        for role in (Role.PREFILL, Role.DECODE):
            settings = settings_for(role, proxy_port=port, kv_connector=connector, kv_shared_path=str(tmp_path))
            found[role.value] = await stack.enter_async_context(running(settings, fast_profile()))
        await proxy.stats_where(lambda s: len(s.instances) == 2 and all(i.state == "ready" for i in s.instances))
        yield found


def asked(prompt: Any, n: int, *, stream: bool) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n": n,
        "max_tokens": OUTPUT,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


def choices(answers: list[dict[str, Any]]) -> dict[int, tuple[str, list[int], list[int], str]]:
    """By index: text, tokens, the prompt's tokens, and why it ended; of an answer in one piece or of a stream's chunks."""
    found: dict[int, tuple[str, list[int], list[int], str]] = {}
    for choice in (choice for answer in answers for choice in answer["choices"]):
        text, tokens, prompt, reason = found.get(choice["index"], ("", [], [], ""))
        said = choice["text"] if "text" in choice else choice.get("message", choice.get("delta"))["content"]
        found[choice["index"]] = (
            text + said,
            tokens + (choice.get("token_ids") or []),
            prompt + (choice.get("prompt_token_ids") or []),
            reason + (choice["finish_reason"] or ""),
        )
    return found


def answers_of(reply: Reply) -> list[dict[str, Any]]:
    """The JSON of an answer, or of each chunk of a stream, which must be whole."""
    assert reply.status == 200, reply.body
    if reply.headers["Content-Type"] == "application/json":
        return [reply.json]
    assert reply.events[-1] == sse.DONE
    return [json.loads(event) for event in reply.events[:-1]]


def usage(answers: list[dict[str, Any]]) -> tuple[int, int, int]:
    found = answers[-1]["usage"]
    return found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]


@STREAMS
@COPIES
@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.EXAMPLE])
@pytest.mark.parametrize("kind", PROMPTS)
async def test_every_choice_is_what_a_plain_engine_writes_at_its_index(
    proxy: RunningProxy, engines: dict[str, Simulator], kind: str, n: int, *, stream: bool
) -> None:
    prompts = PROMPTS[kind]
    plain = (await engines["plain"].post("/v1/completions", asked(prompts, n, stream=False))).body

    answers = answers_of(await proxy.post(asked(prompts, n, stream=stream)))

    expected = choices([plain])
    assert choices(answers) == expected
    count = 1 if kind in ("a text", "ids") else len(prompts)
    assert sorted(expected) == list(range(count * n))
    assert all(len(tokens) == OUTPUT for _, tokens, _, _ in expected.values())
    assert len({tuple(tokens) for _, tokens, _, _ in expected.values()}) == (1 if kind == "equal ones" else count)
    assert usage(answers) == usage([plain])


@STREAMS
@COPIES
async def test_every_copy_of_a_chats_answer_is_what_a_plain_engine_writes(
    proxy: RunningProxy, engines: dict[str, Simulator], n: int, *, stream: bool
) -> None:
    body = {"messages": [{"role": "user", "content": TEXTS[1]}], **asked(None, n, stream=stream)}
    del body["prompt"]
    plain = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    expected = (await engines["plain"].post("/v1/chat/completions", plain)).body

    answers = answers_of(await proxy.post(body, "/v1/chat/completions"))

    assert {index: found[:2] for index, found in choices(answers).items()} == {
        index: found[:2] for index, found in choices([expected]).items()
    }
    assert sorted(choices(answers)) == list(range(n))
    assert usage(answers) == usage([expected])


async def test_each_sequence_hands_over_kv_of_its_own_and_uses_it_up(
    proxy: RunningProxy, engines: dict[str, Simulator]
) -> None:
    await proxy.post(asked(IDS, 2, stream=True))
    prefill, decode = await engines["prefill"].books(), await engines["decode"].books()
    assert prefill["sent"] == decode["received"] == decode["consumed"] == 2 * len(IDS)
    assert decode["held"] == decode["waiting"] == decode["leaked"] == 0


async def test_a_choice_whose_kv_is_damaged_is_told_apart(proxy: RunningProxy, engines: dict[str, Simulator]) -> None:
    # What the comparisons above rest on: decode's words are a function of the KV that it received.
    await engines["prefill"].post("/sim/faults", {"corrupt_kv": True})
    plain = choices([(await engines["plain"].post("/v1/completions", asked(IDS, 2, stream=False))).body])
    found = choices(answers_of(await proxy.post(asked(IDS, 2, stream=False))))
    assert all(found[index][1] != plain[index][1] for index in plain)


@STREAMS
@pytest.mark.parametrize("connector", [Connector.NIXL])
@pytest.mark.parametrize(("kind", "n"), [("texts", 1), ("a text", 2), ("lists of ids", 2)])
async def test_nixl_hands_over_one_sequence_so_others_go_to_a_combined_engine_or_nowhere(
    proxy: RunningProxy, engines: dict[str, Simulator], kind: str, n: int, *, stream: bool
) -> None:
    body = asked(PROMPTS[kind], n, stream=stream)
    refused = await proxy.post(body)
    assert (refused.status, refused.error["code"]) == (400, "not_disaggregable")
    async with running(settings_for(proxy_port=proxy.settings.proxy_port), fast_profile()):
        await proxy.stats_where(lambda s: sum(i.state == "ready" for i in s.instances) == 3)
        answers = answers_of(await proxy.post(body))
    plain = (await engines["plain"].post("/v1/completions", asked(PROMPTS[kind], n, stream=False))).body
    assert choices(answers) == choices([plain])
