"""The hand-over: ids as vLLM's patterns read them, and the bodies of both legs."""

import json
import re
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, PingType
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import BrokenReplyError
from pd_proxy.kv.debts import Debt
from pd_proxy.kv.transfer import Leg, Plan, again, one_token, p2p_request_id, plain, plan, stand_in
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import parse

# vLLM 0.23.0, kv_connector/v1/p2p/p2p_nccl_connector.py, parse_request_id: the producer's and the consumer's pattern.
PRODUCER = r"___decode_addr_(.*):(\d+)"
CONSUMER = r"___prefill_addr_(.*):(\d+)___"

PORTS = st.integers(1, 65535)
HOSTS = st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts))) | st.from_regex(
    r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,20}[A-Za-z0-9])?", fullmatch=True
)
# What vLLM makes of the id: prefixes and suffixes of the endpoints, of n > 1, and of its own randomisation.
PREFIXES = st.sampled_from(["", "cmpl-", "chatcmpl-", "0_cmpl-", "generate-tokens-", "3_chatcmpl-"])
SUFFIXES = st.sampled_from(["", "-0", "-1", "-0-1a2b3c4d", "_2"])


@given(HOSTS, PORTS, HOSTS, PORTS, st.tuples(PREFIXES, st.uuids(), SUFFIXES))
def test_vllm_finds_both_addresses_in_the_id(
    p_host: str, p_port: int, d_host: str, d_port: int, rest: tuple[str, UUID, str]
) -> None:
    for address in (f"{p_host}:{p_port}", f"{d_host}:{d_port}"):
        Ping(type=PingType.DECODE, http_address=address, zmq_address=address)  # such an address may ping
    prefix, uuid, suffix = rest
    request_id = prefix + p2p_request_id(f"{p_host}:{p_port}", f"{d_host}:{d_port}", uuid.hex) + suffix
    producer, consumer = re.search(PRODUCER, request_id), re.search(CONSUMER, request_id)
    assert producer is not None
    assert consumer is not None
    assert producer.groups() == (d_host, str(d_port))
    assert consumer.groups() == (p_host, str(p_port))


def pair(connector: Connector) -> Pair:
    def engine(role: Role, host: str) -> Instance:
        return Instance(
            name=f"{role}-0", role=role, http_address=f"{host}:8000", zmq_address=f"{host}:21001",
            connector=connector, incarnation=1,
        )  # fmt: skip

    return Pair(engine(Role.PREFILL, "10.0.0.1"), engine(Role.DECODE, "10.0.0.2"))


def planned(connector: Connector, headers: dict[str, str] | None = None, **fields: Any) -> Plan:
    generation = parse(Endpoint.COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 9} | fields).encode())
    return plan(pair(connector), generation.endpoint, generation.fields, headers or {})


def response(connector: Connector, **fields: Any) -> Plan:
    asked = {"input": "x", "max_output_tokens": 9} | fields
    generation = parse(Endpoint.RESPONSES, json.dumps(asked).encode())
    return plan(pair(connector), generation.endpoint, generation.fields, {})


def body(leg: Leg) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(leg.body)
    return decoded


@pytest.mark.parametrize("connector", list(Connector))
def test_every_plan_has_a_fresh_id_that_both_legs_and_the_drain_share(connector: Connector) -> None:
    one, two = planned(connector), planned(connector)
    assert one.engine_id != two.engine_id
    handover = one.receive(answer(one))
    for leg in (one.prefill, handover.decode(), handover.drain()):
        assert leg.headers["X-Request-Id"] == one.engine_id


@pytest.mark.parametrize("connector", list(Connector))
def test_cutting_the_secret_out_of_an_answer_leaves_the_public_id(connector: Connector) -> None:
    attempt = planned(connector)
    answered = f"cmpl-{attempt.engine_id}".encode()
    assert answered.replace(attempt.secret, b"") == f"cmpl-{attempt.uuid}".encode()
    assert re.fullmatch(r"[0-9a-f]{32}", attempt.uuid)
    assert bool(attempt.secret) is (connector is Connector.P2P_NCCL)


def test_p2p_puts_the_kv_addresses_into_the_id() -> None:
    attempt = planned(Connector.P2P_NCCL)
    assert attempt.engine_id.startswith("___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:21001_")


@pytest.mark.parametrize("connector", list(Connector))
def test_prefill_writes_one_token_and_decode_gets_the_request(connector: Connector) -> None:
    asked: dict[str, Any] = {
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "min_tokens": 5,
        "seed": 1,
    }
    attempt = planned(connector, **asked)
    first = body(attempt.prefill)
    first.pop("kv_transfer_params", None)
    assert first == {"prompt": "x", "max_tokens": 1, "n": 2, "stream": False, "seed": 1}
    second = body(attempt.receive(answer(attempt)).decode())
    second.pop("kv_transfer_params", None)
    assert second == {"prompt": "x", "max_tokens": 9} | asked


def test_chat_prefill_sets_both_limits() -> None:
    generation = parse(Endpoint.CHAT, b'{"messages":[],"max_completion_tokens":50}')
    short = one_token(Endpoint.CHAT, generation.fields)
    assert (bytes(short["max_tokens"]), bytes(short["max_completion_tokens"])) == (b"1", b"1")
    assert "max_completion_tokens" not in one_token(Endpoint.CHAT, parse(Endpoint.CHAT, b'{"messages":[]}').fields)


def answer(attempt: Plan) -> bytes:
    """What prefill of any connector would answer: ours names the key that it was given."""
    asked = body(attempt.prefill).get("kv_transfer_params", {}).get("pd")
    params = {"pd": {"key": asked["key"], "blocks": 1, "tokens": 1}} if asked else {"a": 1}
    return json.dumps({"kv_transfer_params": params}).encode()


def test_our_connector_names_the_kv_by_a_key_and_each_engine_the_other() -> None:
    one, two = planned(Connector.P2P), planned(Connector.P2P)

    first = body(one.prefill)["kv_transfer_params"]["pd"]
    second = body(one.receive(answer(one)).decode())["kv_transfer_params"]["pd"]
    assert first == {"key": first["key"], "to": ["10.0.0.2:21001"]}
    assert second == {"key": first["key"], "from": "10.0.0.1:21001"}
    assert first["key"] != body(two.prefill)["kv_transfer_params"]["pd"]["key"]


def test_our_connector_leaves_nothing_behind() -> None:
    attempt = planned(Connector.P2P)

    assert attempt.abortable
    assert (attempt.stand_in, attempt.receive(answer(attempt)).pushed) == (None, False)
    assert [connector for connector in Connector if planned(connector).abortable] == [Connector.P2P]


@pytest.mark.parametrize(
    "told",
    [b"", b"<html>", b"[]", b"{}", b'{"kv_transfer_params":null}', b'{"kv_transfer_params":{"pd":{"key":"another"}}}',
     b'{"kv_transfer_params":{"pd":7}}', b'{"error":{"message":"no"}}'],
)  # fmt: skip
def test_our_connector_believes_prefill_only_if_it_names_the_kv(told: bytes) -> None:
    with pytest.raises(BrokenReplyError):
        planned(Connector.P2P).receive(told)


def test_nixl_passes_parameters_on_verbatim() -> None:
    params = b'{"remote_engine_id": "e", "remote_block_ids":[[1,2]], "new_field":1.50}'
    attempt = planned(Connector.NIXL)
    assert body(attempt.prefill)["kv_transfer_params"]["do_remote_decode"] is True
    handover = attempt.receive(b'{"id":"x","kv_transfer_params":' + params + b"}")
    assert params in handover.decode().body
    assert params in handover.drain().body
    assert body(handover.drain())["max_tokens"] == 1
    assert handover.pushed


@pytest.mark.parametrize("answer", [b"{}", b'{"kv_transfer_params":null}'])
def test_nixl_without_parameters_has_nothing_to_hand_over(answer: bytes) -> None:
    handover = planned(Connector.NIXL).receive(answer)
    assert not handover.pushed
    assert "kv_transfer_params" not in body(handover.decode())


@pytest.mark.parametrize("answer", [b"", b"[]", b"nonsense", b'{"kv_transfer_params":', b"\xff"])
def test_nixl_does_not_accept_an_answer_that_is_none(answer: bytes) -> None:
    with pytest.raises(BrokenReplyError):
        planned(Connector.NIXL).receive(answer)


def test_only_stock_p2p_and_nixl_leave_kv_that_somebody_must_consume() -> None:
    plans = {connector: planned(connector) for connector in Connector}
    assert {connector: attempt.receive(answer(attempt)).pushed for connector, attempt in plans.items()} == {
        Connector.P2P: False,
        Connector.P2P_NCCL: True,
        Connector.NIXL: True,
        Connector.EXAMPLE: False,
    }


def test_headers_that_may_go_on_reach_every_engine() -> None:
    headers = {"traceparent": "00-1-2-01"}
    attempt = planned(Connector.P2P_NCCL, headers)
    assert attempt.prefill.headers["traceparent"] == "00-1-2-01"
    assert attempt.receive(b"").decode().headers["traceparent"] == "00-1-2-01"
    _, leg = plain(Endpoint.COMPLETIONS, {}, headers)
    assert leg.headers["traceparent"] == "00-1-2-01"


@pytest.mark.parametrize("connector", list(Connector))
def test_a_response_has_its_id_in_the_body_where_vllm_looks_for_it(connector: Connector) -> None:
    attempt = response(connector)
    handover = attempt.receive(answer(attempt))
    for leg in (attempt.prefill, handover.decode(), handover.drain(), plain_response()):
        assert body(leg)["request_id"] == leg.headers["X-Request-Id"]
    assert body(attempt.prefill)["request_id"] == body(handover.decode())["request_id"] == attempt.engine_id
    assert attempt.engine_id.encode().replace(attempt.secret, b"") == attempt.uuid.encode()
    assert re.fullmatch(r"resp_[0-9a-f]{32}", attempt.uuid)


def plain_response() -> Leg:
    return plain(Endpoint.RESPONSES, parse(Endpoint.RESPONSES, b'{"input":"x"}').fields, {})[1]


def test_vllm_finds_both_addresses_in_a_responses_id() -> None:
    # The engine's own id is this one with the number of the generation.
    request_id = response(Connector.P2P_NCCL).engine_id + "_0"
    producer, consumer = re.search(PRODUCER, request_id), re.search(CONSUMER, request_id)
    assert producer is not None
    assert consumer is not None
    assert (producer.groups(), consumer.groups()) == (("10.0.0.2", "21001"), ("10.0.0.1", "21001"))


@pytest.mark.parametrize("connector", list(Connector))
def test_prefill_of_a_response_writes_one_token_and_nobody_stores_it(connector: Connector) -> None:
    attempt = response(connector, stream=True, store=True, seed=1)
    first, second = body(attempt.prefill), body(attempt.receive(answer(attempt)).decode())
    for sent in (first, second):
        del sent["request_id"]
        sent.pop("kv_transfer_params", None)
    assert first == {"input": "x", "max_output_tokens": 1, "stream": False, "store": False, "seed": 1}
    assert second == {"input": "x", "max_output_tokens": 9, "stream": True, "store": False, "seed": 1}


@pytest.mark.parametrize(
    ("endpoint", "asked", "prompt"),
    [
        (Endpoint.COMPLETIONS, {"prompt": "x", "messages": [], "input": "y"}, "prompt"),
        (Endpoint.CHAT, {"messages": [], "prompt": ["a", "b"]}, "messages"),
        (Endpoint.RESPONSES, {"input": "x", "prompt": None}, "input"),
    ],
)
def test_what_stands_in_for_a_request_goes_by_its_endpoint_whatever_else_it_holds(
    endpoint: Endpoint, asked: dict[str, Any], prompt: str
) -> None:
    short = stand_in(endpoint, parse(endpoint, json.dumps(asked).encode()).fields)
    assert {"prompt", "messages", "input"} & short.keys() == {prompt}
    assert b"seventeen" in bytes(short[prompt])
    again_for = again(Debt("10.0.0.2:21001", endpoint, "the-id", short))
    assert b"the-id" in again_for.prefill.body + json.dumps(dict(again_for.prefill.headers)).encode()
