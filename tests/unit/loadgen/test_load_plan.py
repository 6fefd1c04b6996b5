"""The whole load before the first request, and the hash that proves two runs equal."""

import json

import msgspec
import pytest

from pd_loadgen.datasets import Dataset
from pd_loadgen.options import Options
from pd_loadgen.plan import PlanError, Planned, make

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


@pytest.mark.parametrize("dataset", list(Dataset))
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
