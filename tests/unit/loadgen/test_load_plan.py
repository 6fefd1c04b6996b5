"""The whole load is known before the first request, and its hash shows that two runs have the same one."""

import json
from pathlib import Path

import msgspec
import pytest

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import PlanError, Planned, make
from pd_loadgen.workload.schedule import Arrival

OPTIONS = Options(rate=5, duration=4, seed=1, input_tokens=20, output_tokens=6, warmup=2, url="http://one:1")


def changed(**changes: object) -> Options:
    return msgspec.structs.replace(OPTIONS, **changes)


def body(planned: Planned) -> dict[str, object]:
    decoded = json.loads(planned.wire.partition(b"\r\n\r\n")[2])
    assert isinstance(decoded, dict)
    return decoded


def test_requests_are_numbered_in_the_order_of_their_offsets() -> None:
    requests = make(OPTIONS, "m").requests

    assert [planned.index for planned in requests] == list(range(len(requests)))
    assert [planned.offset for planned in requests] == sorted(planned.offset for planned in requests)


def test_a_request_asks_for_the_model_the_tokens_and_the_timing() -> None:
    planned = make(OPTIONS, "m").requests[0]

    assert (body(planned)["model"], body(planned)["max_tokens"]) == ("m", 6)
    assert len(json.dumps(body(planned)["prompt"]).split(",")) == 20
    assert b"X-PD-Timing: 1\r\n" in planned.wire


@pytest.mark.parametrize("dataset", [Dataset.RANDOM, Dataset.TEXT])
def test_the_same_seed_gives_the_same_bytes_whatever_the_target(dataset: Dataset) -> None:
    one = make(changed(dataset=dataset), "m")
    other = make(changed(dataset=dataset, url="http://two:2", label="x", monitor="http://m:1"), "m")

    assert one.hash == other.hash
    assert [body(planned) for planned in one.requests] == [body(planned) for planned in other.requests]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"rate": 6.0},
        {"duration": 5.0},
        {"input_tokens": 21},
        {"output_tokens": 7},
        {"dataset": Dataset.TEXT},
        {"vocab_size": 900},
        {"range_ratio": 0.5},
        {"prefix_tokens": 4},
        {"turns": 2},
        {"max_concurrency": 2},
        {"arrival": Arrival.RAMP},
        {"mode": Mode.BATCH},
    ],
)
def test_any_other_load_has_another_hash(change: dict[str, object]) -> None:
    assert make(changed(**change), "m").hash != make(OPTIONS, "m").hash


def test_warm_ups_have_prompts_of_their_own() -> None:
    plan = make(OPTIONS, "m")
    measured = {json.dumps(body(planned)["prompt"]) for planned in plan.requests}

    assert [planned.warmup for planned in plan.warmups] == [True, True]
    assert not measured & {json.dumps(body(planned)["prompt"]) for planned in plan.warmups}


def test_warm_ups_leave_the_hash_alone() -> None:
    assert make(changed(warmup=0), "m").hash == make(OPTIONS, "m").hash


def test_an_empty_schedule_is_refused_with_a_remedy() -> None:
    with pytest.raises(PlanError, match="raise rate or duration"):
        make(changed(rate=0.01, duration=1.0), "m")


def test_the_default_load_keeps_its_hash() -> None:
    # fixed for good: a changed algorithm would make old and new runs incomparable without anybody noticing
    assert make(OPTIONS, "m").hash == "4e890d682ae1a911"


def test_at_most_the_requests_asked_for_are_sent() -> None:
    assert len(make(changed(requests=3), "m").requests) == 3


def test_a_closed_loop_has_its_number_of_requests_and_no_offsets() -> None:
    plan = make(changed(arrival=Arrival.CLOSED, requests=7, max_concurrency=2), "m")

    assert (len(plan.requests), plan.paced) == (7, True)
    assert {planned.offset for planned in plan.requests} == {0.0}


def test_a_batch_is_one_prompt_as_often_as_its_size() -> None:
    plan = make(changed(mode=Mode.BATCH, batch_sizes=(1, 3)), "m")
    prompts = [json.dumps(body(planned)["prompt"]) for planned in plan.requests]

    assert [planned.group for planned in plan.requests] == [0, 1, 1, 1]
    assert len(set(prompts[1:])) == 1
    assert prompts[0] != prompts[1]


def test_phases_send_each_prompt_with_one_token_and_then_with_all() -> None:
    plan = make(changed(mode=Mode.PHASE_SPLIT, requests=2), "m")
    prompts = [json.dumps(body(planned)["prompt"]) for planned in plan.requests]

    assert [body(planned)["max_tokens"] for planned in plan.requests] == [1, 1, 6, 6]
    assert [planned.group for planned in plan.requests] == [0, 1, 2, 3]
    assert prompts[:2] == prompts[2:]
    assert prompts[0] != prompts[1]


def test_the_path_and_headers_can_be_chosen() -> None:
    planned = make(changed(path="/v9/completions"), "m", {"Authorization": "Bearer k", "X-A": "b"}).requests[0]

    assert planned.wire.startswith(b"POST /v9/completions HTTP/1.1\r\n")
    assert b"Authorization: Bearer k\r\nX-A: b\r\n" in planned.wire


def test_an_endpoint_that_cannot_take_the_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": [1, 2, 3]}\n')

    with pytest.raises(PlanError, match="takes only text"):
        make(changed(dataset=Dataset.JSONL, dataset_path=str(path), endpoint=Endpoint.TGI), "m")
