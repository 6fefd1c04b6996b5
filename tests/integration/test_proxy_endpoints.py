"""The endpoints of today's vLLM through a proxy to simulated engines: what a pair writes is what a plain engine writes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam
from support.deployments import EXTERNAL, Deployment, deployed, nothing_is_left
from support.proxy import Reply, has_number

from pd_contracts import sse
from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import TOLD_BY_PREFILL

MODEL = "sim-llama3-8b"
MESSAGES, GENERATE, BATCH = "/v1/messages", "/inference/v1/generate", "/v1/chat/completions/batch"
LAMPS = " ".join(f"lamp {number}" for number in range(40))
SAID: list[MessageParam] = [{"role": "user", "content": "who lit the lamp?"}]
ASKED: dict[str, dict[str, Any]] = {
    MESSAGES: {
        "model": MODEL,
        "max_tokens": 6,
        "system": "be brief",
        "messages": [{"role": "user", "content": [{"type": "text", "text": LAMPS}]}],
    },
    GENERATE: {
        "token_ids": list(range(300, 420)),
        "sampling_params": {"max_tokens": 6, "ignore_eos": True},
        "return_token_ids": True,
    },
    BATCH: {
        "messages": [[{"role": "user", "content": LAMPS}], [{"role": "user", "content": LAMPS.upper()}]],
        "max_tokens": 6,
        "ignore_eos": True,
        "return_token_ids": True,
    },
}
CONNECTORS = pytest.mark.parametrize("connector", list(Connector))


@pytest.fixture(name="connector")
def _connector() -> Connector:
    return Connector.P2P_NCCL


@pytest.fixture(name="deployment")
async def _deployment(connector: Connector, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(connector, tmp_path) as deployment:
        yield deployment


def without_names(answer: Any) -> Any:
    """An answer without what differs from one time to the next."""
    if isinstance(answer, list):
        return [without_names(item) for item in answer]
    if isinstance(answer, dict):
        mine = {"id", "request_id", "created", "kv_transfer_params"}
        return {name: without_names(value) for name, value in answer.items() if name not in mine}
    return answer


def chunks(reply: Reply) -> list[Any]:
    """A stream's events, decoded."""
    return [
        sse.Event(event).data if event == "[DONE]" else Reply(0, reply.headers, event.encode()).json
        for event in reply.events
    ]


@pytest.mark.parametrize(
    ("path", "connector"),
    [
        (path, connector)
        for path in ASKED
        for connector in Connector
        if path != BATCH or connector not in TOLD_BY_PREFILL  # see below
    ],
)
async def test_a_pair_answers_as_a_plain_engine_does(deployment: Deployment, path: str) -> None:
    prefill, decode = await deployment.pair()
    plain = await deployment.plain.post(path, ASKED[path])

    reply = await deployment.proxy.post(ASKED[path], path)

    assert (plain.status, reply.status) == (200, 200), reply.body
    assert without_names(reply.json) == without_names(plain.body)
    assert await decode.metric(EXTERNAL) > 0, "decode must not have computed it all again"
    for secret in ("127.0.0.1", "_addr_", "kv_transfer_params"):
        assert secret not in reply.body.decode()
    assert not has_number(reply.body.decode(), prefill.settings.kv_port)
    await nothing_is_left(prefill, decode)


@pytest.mark.parametrize("connector", sorted(TOLD_BY_PREFILL))
@pytest.mark.parametrize("conversations", [1, 2])
async def test_a_batch_cannot_be_handed_over_where_the_answer_says_how(
    deployment: Deployment, conversations: int
) -> None:
    await deployment.pair()
    body = ASKED[BATCH] | {"messages": ASKED[BATCH]["messages"][:conversations]}

    reply = await deployment.proxy.post(body, BATCH)

    assert (reply.status, reply.error["code"]) == (400, "not_disaggregable")
    await deployment.engine(Role.COMBINED)
    assert (await deployment.proxy.post(body, BATCH)).status == 200


@CONNECTORS
@pytest.mark.parametrize("path", [MESSAGES, GENERATE])
async def test_a_pair_streams_as_a_plain_engine_does(deployment: Deployment, path: str) -> None:
    prefill, decode = await deployment.pair()
    body = ASKED[path] | {"stream": True} | ({"stream_options": {"include_usage": True}} if path == GENERATE else {})
    plain = await deployment.plain.post(path, body)

    reply = await deployment.proxy.post(body, path)

    events = [event for event in chunks(reply) if event != "[DONE]"]
    assert without_names(events) == without_names(plain.chunks)
    assert (reply.events[-1] == "[DONE]") == plain.done
    assert await decode.metric(EXTERNAL) > 0
    for secret in ("127.0.0.1", "_addr_", "kv_transfer_params"):
        assert secret not in reply.body.decode()
    await nothing_is_left(prefill, decode)


async def test_anthropics_client_reads_everything(deployment: Deployment) -> None:
    await deployment.pair()
    async with anthropic.AsyncAnthropic(base_url=deployment.proxy.url, api_key="none", max_retries=0) as client:
        counted = await client.messages.count_tokens(model=MODEL, messages=SAID)
        whole = await client.messages.create(model=MODEL, messages=SAID, max_tokens=5)
        async with client.messages.stream(model=MODEL, messages=SAID, max_tokens=5) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        with pytest.raises(anthropic.NotFoundError, match="`other` does not exist"):
            await client.messages.create(model="other", messages=SAID, max_tokens=5)
        with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
            await client.messages.create(model=MODEL, messages=SAID, max_tokens=20_000)

    assert whole.content[0].type == "text"
    assert whole.content[0].text == text
    assert (whole.stop_reason, whole.usage.input_tokens) == ("max_tokens", counted.input_tokens)
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == (
        "max_tokens",
        counted.input_tokens,
        5,
    )


async def test_anthropics_clients_send_their_key_in_a_header_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sesame\n")
    async with deployed(Connector.P2P_NCCL, tmp_path, api_keys_file=str(tmp_path / "keys")) as deployment:
        await deployment.pair()
        for key, right in (("sesame", True), ("other", False)):
            async with anthropic.AsyncAnthropic(base_url=deployment.proxy.url, api_key=key, max_retries=0) as client:
                if right:
                    assert (await client.messages.create(model=MODEL, messages=SAID, max_tokens=2)).content
                    assert (await client.messages.count_tokens(model=MODEL, messages=SAID)).input_tokens
                    continue
                with pytest.raises(anthropic.AuthenticationError, match="needs an API key"):
                    await client.messages.create(model=MODEL, messages=SAID, max_tokens=2)
                with pytest.raises(anthropic.AuthenticationError, match="needs an API key"):
                    await client.messages.count_tokens(model=MODEL, messages=SAID)


async def test_a_message_whose_engine_dies_ends_with_anthropics_error_event(deployment: Deployment) -> None:
    _, decode = await deployment.pair()
    await decode.post("/sim/faults", {"die_mid_stream": True})

    reply = await deployment.proxy.post(ASKED[MESSAGES] | {"stream": True}, MESSAGES)

    *_, last = chunks(reply)
    assert last["type"] == "error"
    assert set(last["error"]) == {"type", "message"}
    assert "decode-0" in last["error"]["message"]
    assert b"message_stop" not in reply.body
    assert b"127.0.0.1" not in reply.body
    assert 'cause="disconnected"' in (await deployment.proxy.get("/metrics")).body.decode()


@pytest.mark.parametrize("path", [MESSAGES, GENERATE, BATCH])
@pytest.mark.parametrize("fault", [{"refuse": True}, {"status": 500}])
async def test_a_failed_engine_is_replaced_and_leaves_no_kv(deployment: Deployment, path: str, fault: Any) -> None:
    engines = [*await deployment.pair(), *await deployment.pair()]
    right = without_names((await deployment.plain.post(path, ASKED[path])).body)
    await engines[1].post("/sim/faults", fault)

    for _ in range(2):
        assert without_names((await deployment.proxy.post(ASKED[path], path)).json) == right

    assert (await deployment.proxy.stats()).retries > 0
    await engines[1].post("/sim/faults", {})
    await deployment.proxy.paid()
    await nothing_is_left(*engines)


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        (GENERATE, {"features": {"mm_hashes": {}}}, "features"),
        (GENERATE, {"sampling_params": {"prompt_logprobs": 1}}, "prompt_logprobs"),
        (BATCH, {"echo": True}, "echo"),
    ],
)
async def test_what_a_pair_cannot_share_needs_a_combined_engine(
    deployment: Deployment, path: str, fields: dict[str, Any], says: str
) -> None:
    prefill, _ = await deployment.pair()

    reply = await deployment.proxy.post(ASKED[path] | fields, path)

    assert (reply.status, reply.error["code"]) == (400, "not_disaggregable")
    assert says in reply.error["message"]
    assert await prefill.metric("vllm:prompt_tokens_total") == 0


async def test_a_combined_engine_serves_them_too(deployment: Deployment) -> None:
    await deployment.engine(Role.COMBINED)
    for path, body in ASKED.items():
        plain = (await deployment.plain.post(path, body)).body
        assert without_names((await deployment.proxy.post(body, path)).json) == without_names(plain)
