"""What vLLM's scheduler gets from the connector, with requests and steps as vLLM makes them."""

from types import SimpleNamespace
from typing import Any

import pytest

from pd_connector.core.orders import (
    Begin,
    Computed,
    Copy,
    Drop,
    Ended,
    Event,
    Expect,
    Failed,
    Forget,
    Load,
    Order,
    Preempted,
    Ready,
)
from pd_connector.engine.compat import Facts
from pd_connector.engine.scheduler import LATER, NOTHING, SchedulerHalf
from pd_connector.settings import Settings
from pd_connector.wire.params import kv_key

BLOCK = 16
HERE = "10.0.0.1:21001"
THERE = "10.0.0.2:22001"


def half(**facts: Any) -> SchedulerHalf:
    """A half whose workers are in another process: all that it tells them comes with the next step."""
    fields = {
        "engine_id": "e",
        "block_size": BLOCK,
        "blocks": 100,
        "ranks": 1,
        "port": 21001,
        "sends": True,
        "takes": True,
    }
    fields |= {"fails": False, "step_tokens": 512, "layers_once": True, "ids_alone": True, "schema": {}}
    return SchedulerHalf(Facts(**{**fields, **facts}), Settings(), HERE, None)


class Status:
    """vLLM's status prints as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


def request(name: str, prompt: list[int], pd: Any, **fields: Any) -> Any:
    found = SimpleNamespace(
        request_id=name,
        prompt_token_ids=list(prompt),
        _all_token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        kv_transfer_params=None if pd is None else {"pd": pd},
        sampling_params=SimpleNamespace(prompt_logprobs=None, min_tokens=0),
        status=Status("FINISHED_LENGTH_CAPPED"),
        output_token_ids=[77],
        max_tokens=20,
        stop_reason=None,
        block_hashes=[],
        lora_request=None,
        mm_features=[],
        prompt_embeds=None,
    )
    found.__dict__.update(fields)
    found.update_block_hashes = lambda: found.block_hashes.append(tuple(found._all_token_ids))
    return found


def step(
    new: list[tuple[str, list[int], int, int]] = (),  # type: ignore[assignment]
    cached: list[tuple[str, list[int] | None, int, int]] = (),  # type: ignore[assignment]
    resumed: set[str] = frozenset(),  # type: ignore[assignment]
    preempted: set[str] | None = None,
) -> Any:
    """A scheduler's output: requests with their blocks, tokens computed before, and tokens of this step."""
    scheduled = {name: tokens for name, _, _, tokens in (*new, *cached)}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=(blocks,), num_computed_tokens=before)
            for name, blocks, before, _ in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached],
            new_block_ids=[None if blocks is None else (blocks,) for _, blocks, _, _ in cached],
            num_computed_tokens=[before for *_, before, _ in cached],
            resumed_req_ids=resumed,
        ),
        num_scheduled_tokens=scheduled,
        total_num_scheduled_tokens=sum(scheduled.values()),
        preempted_req_ids=preempted,
    )


def told(scheduler: SchedulerHalf, *events: Event) -> list[Order]:
    """What the workers report, and the orders of an empty step."""
    scheduler.output((), (), [(0, event) for event in events])
    return scheduler.build(step())


PROMPT = list(range(100, 140))


class TestPrefill:
    def test_a_prompt_in_two_steps(self) -> None:
        scheduler, key = half(), kv_key("k", PROMPT)
        one = request("r", PROMPT, {"key": "k", "to": [THERE]})
        scheduler.on_new_request(one)
        assert scheduler.matched(one, 0) == NOTHING

        assert scheduler.build(step(new=[("r", [5, 6], 0, 32)])) == [
            Begin("r", key, THERE, 3),
            Computed(key, 0, (5, 6)),
        ]
        assert scheduler.build(step(cached=[("r", [7], 32, 8)])) == [Computed(key, 2, (7,), last=True)]
        assert scheduler.finished(one) == (True, {"pd": {"key": "k", "blocks": 3, "tokens": 40}})
        assert told(scheduler) == [Ended("r", key, 77, held=True)]
        scheduler.output(["r"], (), [])

    def test_a_preempted_prompt_begins_anew(self) -> None:
        scheduler, key = half(), kv_key("k", PROMPT)
        scheduler.on_new_request(request("r", PROMPT, {"key": "k", "to": [THERE]}))
        scheduler.build(step(new=[("r", [5, 6], 0, 32)]))

        assert scheduler.build(step(preempted={"r"})) == [Preempted(key)]
        again = scheduler.build(step(cached=[("r", [8, 9, 10], 0, 40)], resumed={"r"}))
        assert again == [Computed(key, 0, (8, 9, 10), last=True)]

    def test_a_token_that_ends_the_answer_is_sent_like_any_other(self) -> None:
        scheduler, key = half(), kv_key("k", PROMPT)
        one = request("r", PROMPT, {"key": "k", "to": [THERE]}, status=Status("FINISHED_STOPPED"))
        scheduler.on_new_request(one)
        scheduler.build(step(new=[("r", [5, 6, 7], 0, 40)]))
        scheduler.finished(one)

        assert told(scheduler) == [Ended("r", key, 77, held=True)]

    @pytest.mark.parametrize("status", ["FINISHED_ABORTED", "FINISHED_ERROR", "FINISHED_IGNORED"])
    def test_an_aborted_request_tells_decode_that_nothing_comes(self, status: str) -> None:
        scheduler, key = half(), kv_key("k", PROMPT)
        one = request("r", PROMPT, {"key": "k", "to": [THERE]}, status=Status(status))
        scheduler.on_new_request(one)
        scheduler.build(step(new=[("r", [5, 6, 7], 0, 40)]))

        assert scheduler.finished(one)[0] is False
        assert told(scheduler) == [Ended("r", key, None)]

    def test_an_engines_own_address_is_treated_as_local(self) -> None:
        scheduler = half()
        scheduler.on_new_request(request("r", PROMPT, {"key": "k", "to": [HERE]}))

        assert told(scheduler) == [Begin("r", kv_key("k", PROMPT), None, 3)]

    def test_an_engine_that_only_receives_computes_its_own_prompts_as_any_other(self) -> None:
        scheduler = half(sends=False)
        one = request("r", PROMPT, {"key": "k", "to": [THERE]})
        scheduler.on_new_request(one)

        assert told(scheduler) == []
        assert scheduler.finished(one) == (False, None)


class TestDecode:
    def decoding(self, prompt: list[int], pd: dict[str, Any], **facts: Any) -> tuple[SchedulerHalf, Any]:
        scheduler = half(**facts)
        one = request("r", prompt, {"key": "k", "from": THERE, **pd})
        scheduler.on_new_request(one)
        return scheduler, one

    def test_it_waits_then_loads_behind_what_is_cached(self) -> None:
        scheduler, one = self.decoding(PROMPT, {})
        key = kv_key("k", PROMPT)
        assert scheduler.matched(one, 16) == LATER
        assert scheduler.build(step()) == [Expect(key, THERE, follows=False)]
        scheduler.output((), (), [(0, Ready(key))])

        assert scheduler.matched(one, 16) == (23, False)
        scheduler.allocated(one, (1, 2, 3), 23)
        assert scheduler.build(step(new=[("r", [1, 2, 3], 39, 1)])) == [Load("r", key, (1, 2, 3), 1)]
        scheduler.allocated(one, (1, 2, 3), 0)
        assert scheduler.matched(one, 0) == NOTHING
        assert scheduler.finished(one) == (False, {"pd": {"key": "k", "outcome": "loaded"}})

    def test_with_hand_off_all_of_prefills_prompt_is_loaded(self) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40})
        key = kv_key("k", PROMPT)
        scheduler.output((), (), [(0, Ready(key))])

        assert scheduler.matched(one, 0) == (40, False)
        assert one.prompt_token_ids[-1] == 7

    def test_the_token_that_follows_replaces_the_place_holder(self) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40, "token": "follows"})
        one.block_hashes = ["a", "with the place holder"]
        key = kv_key("k", PROMPT)
        assert scheduler.matched(one, 0) == LATER
        scheduler.output((), (), [(0, Ready(key, 555))])

        assert scheduler.matched(one, 0) == (40, False)
        assert one.prompt_token_ids == one._all_token_ids == [*PROMPT, 555]
        assert one.block_hashes == ["a", (*PROMPT, 555)]

    def test_a_preempted_request_keeps_the_tokens_of_its_answer(self) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40, "token": "follows"})
        scheduler.output((), (), [(0, Ready(kv_key("k", PROMPT), 555))])
        scheduler.matched(one, 0)
        scheduler.allocated(one, (1, 2, 3), 40)
        scheduler.build(step(new=[("r", [1, 2, 3], 40, 1)]))
        one._all_token_ids += [8, 9]
        scheduler.build(step(preempted={"r"}))

        assert scheduler.matched(one, 0) == NOTHING
        assert one._all_token_ids == [*PROMPT, 555, 8, 9]
        assert one.prompt_token_ids == [*PROMPT, 555]

    def test_without_the_token_the_answer_ends_and_says_why(self) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40, "token": "follows"})
        scheduler.output((), (), [(0, Failed(kv_key("k", PROMPT), "prefill is gone"))])

        assert scheduler.matched(one, 0) == NOTHING
        assert (one.max_tokens, one.stop_reason) == (1, "pd: prefill is gone")

    def test_the_answer_ends_also_if_its_kv_was_to_come_between_steps(self) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40, "token": "follows"}, fails=True)
        key = kv_key("k", PROMPT)
        scheduler.output((), (), [(0, Failed(key, "prefill is gone"))])
        assert scheduler.matched(one, 0) == (40, True)
        scheduler.allocated(one, (1, 2, 3), 40)
        scheduler.output((), ["r"], [])

        assert one.stop_reason == "pd: prefill is gone"

    def test_a_prompt_whose_tokens_are_asked_for_is_computed_and_its_kv_dropped(self) -> None:
        scheduler = half()
        one = request(
            "r", PROMPT, {"key": "k", "from": THERE}, sampling_params=SimpleNamespace(prompt_logprobs=1, min_tokens=0)
        )
        scheduler.on_new_request(one)

        assert scheduler.matched(one, 0) == NOTHING
        assert told(scheduler) == [Drop(kv_key("k", PROMPT), "not needed")]

    def test_a_client_that_leaves_drops_the_key(self) -> None:
        scheduler, one = self.decoding(PROMPT, {})
        told(scheduler)
        one.status = Status("FINISHED_ABORTED")

        assert scheduler.finished(one) == (False, {"pd": {"key": "k", "outcome": "aborted"}})
        assert told(scheduler) == [Drop(kv_key("k", PROMPT), "aborted")]

    def test_blocks_of_an_aborted_request_whose_token_arrived_go_to_the_next_one(self) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40, "token": "follows"})
        key = kv_key("k", PROMPT)
        scheduler.output((), (), [(0, Ready(key, 555))])
        scheduler.matched(one, 0)
        scheduler.allocated(one, (1, 2, 3), 40)
        scheduler.build(step(new=[("r", [1, 2, 3], 40, 1)]))
        one.status = Status("FINISHED_ABORTED")
        assert scheduler.finished(one)[0] is True
        whole = request("w", PROMPT, {"key": "k", "from": THERE})
        scheduler.on_new_request(whole)

        assert scheduler.matched(whole, 0) == (39, False)
        scheduler.allocated(whole, (4, 5, 6), 39)
        copied = Copy("w", key, (1, 2, 3), (4, 5, 6), 0, release="r")
        assert scheduler.build(step(new=[("w", [4, 5, 6], 39, 1)])) == [copied]
        assert scheduler.finished(whole) == (False, {"pd": {"key": "k", "outcome": "loaded"}})

    @pytest.mark.parametrize("status", ["FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"])
    def test_blocks_of_a_request_that_ended_do_not_go_to_the_next_one(self, status: str) -> None:
        scheduler, one = self.decoding([*PROMPT, 7], {"tokens": 40, "token": "follows"})
        scheduler.output((), (), [(0, Ready(kv_key("k", PROMPT), 555))])
        scheduler.matched(one, 0)
        scheduler.allocated(one, (1, 2, 3), 40)
        one.status = Status(status)

        assert scheduler.finished(one)[0] is False

    def test_lora_and_images_make_another_key(self) -> None:
        image = SimpleNamespace(identifier="cat", mm_position=SimpleNamespace(offset=3))
        keys = set()
        for fields in ({}, {"lora_request": SimpleNamespace(lora_name="l")}, {"mm_features": [image]}):
            scheduler = half()
            scheduler.on_new_request(request("r", PROMPT, {"key": "k", "from": THERE}, **fields))
            [order] = told(scheduler)
            assert isinstance(order, Expect)
            keys.add(order.key)
        assert len(keys) == 3


class TestOneEngine:
    def test_decode_waits_for_its_own_prefill_and_lets_it_go(self) -> None:
        scheduler, key = half(), kv_key("k", PROMPT)
        prefill, decode = request("p", PROMPT, {"key": "k"}), request("d", PROMPT, {"key": "k", "from": HERE})
        scheduler.on_new_request(decode)
        assert scheduler.matched(decode, 0) == LATER
        scheduler.on_new_request(prefill)
        assert scheduler.matched(decode, 0) == LATER
        scheduler.build(step(new=[("p", [1, 2, 3], 0, 40)]))
        assert scheduler.finished(prefill)[0] is True

        assert scheduler.matched(decode, 32) == NOTHING
        scheduler.allocated(decode, (1, 2, 4), 0)
        assert told(scheduler)[-1] == Forget(key, "decode runs here")
        assert scheduler.finished(decode) == (False, {"pd": {"key": "k", "outcome": "cached"}})

    def test_kept_kv_is_no_reason_to_wait(self) -> None:
        scheduler = half()
        prefill, decode = request("p", PROMPT, {"key": "k"}), request("d", PROMPT, {"key": "k", "from": HERE})
        scheduler.on_new_request(prefill)
        scheduler.build(step(new=[("p", [1, 2, 3], 0, 40)]))
        scheduler.finished(prefill)
        scheduler.on_new_request(decode)

        assert scheduler.matched(decode, 32) == NOTHING


@pytest.mark.parametrize("pd", ["x", {"key": 5}, {"key": "k", "from": "x"}, {"key": "k", "from": THERE, "tokens": -1}])
def test_a_wrong_pd_map_is_an_ordinary_request(pd: Any) -> None:
    scheduler = half()
    one = request("r", PROMPT, pd)
    scheduler.on_new_request(one)

    assert scheduler.matched(one, 0) == NOTHING
    scheduler.allocated(one, (1, 2, 3), 0)
    assert scheduler.finished(one) == (False, None)
    assert told(scheduler) == []
    assert scheduler.counted() == {"counts": [["ignored", "", 1]], "gauges": [], "spans": []}


def test_prompts_without_token_ids_are_ordinary_requests() -> None:
    scheduler = half()
    one = request("r", PROMPT, {"key": "k", "from": THERE}, prompt_token_ids=None)
    scheduler.on_new_request(one)

    assert scheduler.matched(one, 0) == NOTHING
