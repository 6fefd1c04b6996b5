"""Debts of KV: kept by address and id, limited in number, and repaid under the failed request's id."""

import json
from typing import Any

import pytest

from pd_proxy.kv.debts import TRIES, Debt, Debts
from pd_proxy.kv.transfer import again, stand_in
from pd_proxy.protocol.body import Fields, encoded
from pd_proxy.protocol.endpoints import Endpoint


def debt(number: int = 0, address: str = "10.0.0.2:22001", **fields: Any) -> Debt:
    return Debt(address, "/v1/completions", f"id-{number}", {}, **fields)


def test_debts_are_kept_by_address_and_id() -> None:
    debts = Debts()
    for one in (debt(1), debt(2), debt(1, "10.0.0.3:22001"), debt(1, tries=1)):
        assert debts.add(one)
    assert [(one.engine_id, one.tries) for one in debts.at("10.0.0.2:22001")] == [("id-1", 1), ("id-2", 0)]
    debts.take(debt(1))
    assert [one.engine_id for one in debts.at("10.0.0.2:22001")] == ["id-2"]
    debts.forget("10.0.0.2:22001")
    assert (debts.at("10.0.0.2:22001"), len(debts)) == ([], 1)


def test_a_debt_is_given_up_after_some_tries_and_when_there_are_too_many() -> None:
    debts = Debts(capacity=2)
    assert not debts.add(debt(tries=TRIES))
    assert debts.add(debt(1))
    assert debts.add(debt(2))
    assert not debts.add(debt(3))
    assert debts.add(debt(2, tries=1)), "no more than before"
    assert debts.add(debt(3, "10.0.0.3:22001")), "another engine's"


def test_each_has_its_turn() -> None:
    debts = Debts()
    for number in (1, 2, 3):
        debts.add(debt(number))
    debts.later(debt(1))
    debts.later(debt(9))
    assert [one.engine_id for one in debts.at(debt().address)] == ["id-2", "id-3", "id-1"]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a text", 1), (["one"], 1), (["one", "two", "three"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)],
)
def test_a_stand_in_makes_as_many_sequences_as_its_request(prompt: object, prompts: int) -> None:
    fields = {"model": "m", "prompt": prompt, "n": 3, "max_tokens": 500, "stream": True, "logprobs": 5}
    body = json.loads(again_body(Endpoint.COMPLETIONS, {name: encoded(value) for name, value in fields.items()}))
    assert (body["model"], body["n"], body["max_tokens"], body["stream"]) == ("m", 3, 1, False)
    assert "logprobs" not in body
    assert (1 if isinstance(body["prompt"], str) else len(body["prompt"])) == prompts


def again_body(endpoint: Endpoint, fields: Fields) -> bytes:
    plan = again(Debt("10.0.0.2:22001", endpoint, "the-id", stand_in(endpoint, fields)))
    assert plan.prefill.headers["X-Request-Id"] == "the-id"
    handover = plan.receive(b"{}")
    assert (handover.decode().headers["X-Request-Id"], handover.decode().body) == ("the-id", plan.prefill.body)
    return plan.prefill.body


def test_a_stand_in_for_a_conversation_is_a_conversation() -> None:
    fields = {"messages": encoded([{"role": "user", "content": "hi"}]), "n": encoded(2)}
    body = json.loads(again_body(Endpoint.CHAT, fields))
    assert (len(body["messages"]), body["n"], "prompt" in body) == (1, 2, False)
