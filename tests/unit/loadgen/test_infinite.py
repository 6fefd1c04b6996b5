"""Infinite rates and durations: all requests at once, a given number of them, and bounded memory."""

import math
from typing import Any

import msgspec
import pytest

from pd_contracts.records import Deployment, Manifest
from pd_contracts.settings import SettingsError
from pd_loadgen.live.processes.messages import Job
from pd_loadgen.results import manifests
from pd_loadgen.workload import options
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import Plan, make

SMALL = {"input_tokens": "8", "output_tokens": "4"}


def load(**given: str) -> Options:
    return options.load({**SMALL, **given}, {})


def manifest(read: Options, plan: Plan) -> Manifest:
    begun = manifests.begin("r", read, "m", plan, deployment=Deployment(), command=[])
    return msgspec.json.decode(msgspec.json.encode(begun), type=Manifest)


@pytest.mark.parametrize("arrival", ["poisson", "gamma", "constant"])
@pytest.mark.parametrize("rate", ["inf", "Infinity"])
def test_an_infinite_rate_sends_everything_at_once(arrival: str, rate: str) -> None:
    plan = make(load(rate=rate, requests="40", arrival=arrival), "m")

    assert (plan.total, plan.paced, {one.offset for one in plan.requests}) == (40, True, {0.0})


def test_an_infinite_rate_with_a_limit_is_a_closed_loop() -> None:
    at_once, limited = load(rate="inf", requests="40"), load(rate="inf", requests="40", max_concurrency="8")
    closed = load(arrival="closed", requests="40", max_concurrency="8")

    assert make(limited, "m").hash == make(closed, "m").hash != make(at_once, "m").hash
    loads = [manifest(read, make(read, "m")).workload for read in (at_once, limited, closed)]
    assert [(one.arrival, one.max_concurrency, one.rate) for one in loads] == [
        ("batch", None, 0.0),
        ("closed", 8, 0.0),
        ("closed", 8, 0.0),
    ]


def test_an_infinite_duration_sends_as_many_as_are_wanted() -> None:
    read = load(rate="5", duration="inf", requests="40")
    plan = make(read, "m")
    load_of = manifest(read, plan).workload

    assert (plan.total, plan.paced) == (40, False)
    assert (load_of.rate, load_of.duration_s) == (5.0, 8.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate": "inf"}, "rate inf sends all requests at once: say how many with --requests"),
        ({"duration": "inf"}, "duration inf has no end: say how many with --requests"),
        ({"rate": "inf", "duration": "inf"}, "say how many"),
        ({"rate": "inf", "arrival": "ramp", "requests": "5"}, "give one that is finite"),
        ({"duration": "inf", "arrival": "step", "requests": "5"}, "give one that is finite"),
        ({"rate": "1e9"}, "too many or too long"),
        ({"rate": "1e300", "duration": "1e300"}, "too many or too long"),
        ({"requests": "100000000", "rate": "inf"}, "too many or too long"),
        ({"duration": "1e12"}, "too many or too long"),
        ({"prefix_tokens": "10000000", "rate": "100"}, "too many or too long"),
        ({"input_tokens": "1000000000", "requests": "1"}, "--input-tokens='1000000000' cannot be used"),
        ({"output_tokens": "1000000000", "requests": "1"}, "--output-tokens='1000000000' cannot be used"),
        ({"rate": "nan"}, "cannot be used"),
        ({"timeout": "inf"}, "timeout must be a finite number"),
        ({"idle": "nan"}, "--idle='nan'"),
        ({"think_time": "inf"}, "think_time must be a finite number"),
        ({"lag_limit_ms": "inf"}, "lag_limit_ms must be a finite number"),
        ({"temperature": "inf"}, "temperature must be a finite number"),
    ],
)
def test_what_has_no_bound_is_refused_before_anything_is_made(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(**given)


def test_workers_are_told_an_infinite_rate() -> None:
    job = Job(run_id="r", options=load(rate="inf", requests="4"), model="m")

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job).options.rate == math.inf


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"temperature": "0.7", "ignore_eos": "off"}, {"temperature": "0.7", "ignore_eos": "off"}),
        ({"prefix_tokens": "9", "prefixes": "3"}, {"prefix_tokens": "9", "prefixes": "3"}),
        ({"extra_body": '{"priority": 3}'}, {"extra_body": '{"priority": 3}'}),
        ({"arrival": "ramp", "start_rate": "1"}, {"start_rate": "1"}),
        ({"label": "x", "out": "y", "timeout": "5", "warmup": "2", "seed": "3", "processes": "2"}, {}),
    ],
)
def test_the_manifest_has_every_option_that_makes_the_load(given: dict[str, str], expected: dict[str, str]) -> None:
    read = load(**given)

    assert manifest(read, make(read, "m")).workload.options == expected


@pytest.mark.parametrize("given", [{"temperature": "0.7"}, {"ignore_eos": "off"}, {"extra_body": '{"a": 1}'}])
def test_what_is_asked_of_the_server_is_part_of_the_hash(given: dict[str, Any]) -> None:
    assert make(load(**given), "m").hash != make(load(), "m").hash
