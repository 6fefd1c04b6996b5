"""Conversations whose answers only the server knows."""

import json
from typing import Any

import pytest

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import Answers, Dataset
from pd_loadgen.workload import plan
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import Planned


def options(**given: Any) -> Options:
    chosen = {
        "dataset": Dataset.TEXT,
        "endpoint": Endpoint.CHAT,
        "turns": 3,
        "answers": Answers.SERVED,
        "requests": 2,
        "rate": 10.0,
    }
    return Options(**{**chosen, **given})


def body(planned: Planned) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(planned.wire.partition(b"\r\n\r\n")[2])
    return made


def test_each_turn_holds_what_was_answered_before() -> None:
    first = plan.make(options(), "m").requests[1]
    assert first.then is not None
    second = first.then("forty-two")
    assert second.then is not None
    third = second.then("indeed")

    roles = [[(one["role"], one["content"]) for one in body(turn)["messages"]] for turn in (first, second, third)]
    assert [len(said) for said in roles] == [1, 3, 5]
    assert roles[2][:3] == roles[1]
    assert roles[1][1] == ("assistant", "forty-two")
    assert [role for role, _ in roles[2]] == ["user", "assistant", "user", "assistant", "user"]
    assert len({said for role, said in roles[2] if role == "user"}) == 3
    assert [turn.index for turn in (first, second, third)] == [3, 4, 5]
    assert (first.follow, third.follow, third.then) == (2, 0, None)


def test_completions_get_the_same_as_one_text() -> None:
    first = plan.make(options(endpoint=Endpoint.COMPLETIONS), "m").requests[0]
    assert first.then is not None

    assert body(first.then("forty-two"))["prompt"].startswith(body(first)["prompt"] + "\n\nforty-two\n\n")


def test_arrivals_are_conversations_and_all_turns_count() -> None:
    made = plan.make(options(), "m")

    assert (len(made.requests), made.total) == (2, 6)
    assert not made.paced


def test_the_fingerprint_knows_what_is_asked_and_how_long_is_thought() -> None:
    hashes = {
        plan.make(options(**given), "m").hash
        for given in ({}, {"think_time": 1.0}, {"turns": 2}, {"seed": 1}, {"answers": Answers.MADE})
    }

    assert len(hashes) == 5
    assert plan.make(options(), "m").hash == plan.make(options(url="http://elsewhere:1"), "other").hash


@pytest.mark.parametrize(
    "given", [{"turns": 1}, {"dataset": Dataset.RANDOM, "endpoint": Endpoint.COMPLETIONS}, {"endpoint": Endpoint.TGI}]
)
def test_what_cannot_converse_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="answers served needs"):
        options(**given)


def test_thinking_time_without_a_conversation_is_refused() -> None:
    with pytest.raises(ValueError, match="think-time"):
        Options(think_time=1.0)
