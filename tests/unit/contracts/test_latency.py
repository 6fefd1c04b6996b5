"""The formulas against numbers worked out by hand: one request, scheduled at 10.0 s."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.latency import (
    FORMULAS,
    PERCENTILES,
    e2el,
    itl,
    meets,
    parse_goodput,
    percentile,
    succeeded,
    tpot,
    ttft,
    ttft_from_send,
)
from pd_contracts.records import Failure, RequestRecord

# Scheduled 10.0, sent 0.1 s late, tokens at 10.5, 10.7 (two at once), 11.1: usage says four output tokens.
SERVED = RequestRecord(
    index=0,
    id="r",
    scheduled=10.0,
    sent=10.1,
    headers=10.15,
    first_byte=10.2,
    chunks=[(10.5, 1), (10.7, 2), (11.1, 1)],
    end=11.3,
    prompt_tokens=100,
    output_tokens=4,
)
NOTHING = RequestRecord(index=1, id="n", scheduled=10.0)
ONE_TOKEN = RequestRecord(index=2, id="o", scheduled=10.0, sent=10.0, chunks=[(10.4, 1)], output_tokens=1)
FAILED = RequestRecord(
    index=3, id="f", scheduled=10.0, sent=10.0, chunks=[(10.01, 1)], error=Failure(kind="truncated", message="cut")
)


def test_ttft_counts_from_the_scheduled_send_and_apart_from_it_from_the_actual_one() -> None:
    assert ttft(SERVED) == pytest.approx(0.5)
    assert ttft_from_send(SERVED) == pytest.approx(0.4)


def test_e2el_ends_with_the_last_token_not_with_the_stream() -> None:
    assert e2el(SERVED) == pytest.approx(1.1)


def test_tpot_divides_by_the_servers_tokens_not_by_chunks() -> None:
    assert tpot(SERVED) == pytest.approx((11.1 - 10.5) / 3)


def test_itl_is_the_gaps_between_chunks() -> None:
    assert itl(SERVED) == pytest.approx([0.2, 0.4])


def test_what_a_request_cannot_have_is_unknown() -> None:
    assert (ttft(NOTHING), ttft_from_send(NOTHING), e2el(NOTHING), tpot(NOTHING), itl(NOTHING)) == (
        None,
        None,
        None,
        None,
        [],
    )
    assert (tpot(ONE_TOKEN), itl(ONE_TOKEN)) == (None, [])
    assert ttft(ONE_TOKEN) == pytest.approx(0.4)


def test_without_usage_there_is_no_tpot() -> None:
    assert tpot(RequestRecord(index=0, id="r", scheduled=0.0, chunks=[(1.0, 1), (2.0, 1)])) is None


def test_success_needs_a_token_and_no_error() -> None:
    assert [succeeded(record) for record in (SERVED, ONE_TOKEN, NOTHING, FAILED)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({}, True),
        ({"ttft": 501.0}, True),
        ({"ttft": 499.0}, False),
        ({"ttft": 501.0, "tpot": 201.0, "e2el": 1101.0}, True),
        ({"ttft": 501.0, "tpot": 199.0, "e2el": 1101.0}, False),
        ({"ttft": 501.0, "tpot": 201.0, "e2el": 1099.0}, False),
    ],
)
def test_goodput_wants_every_limit_met(limits: dict[str, float], met: bool) -> None:
    assert meets(SERVED, limits) is met


def test_tokens_of_the_first_chunk_took_no_time_after_it() -> None:
    bundled = RequestRecord(
        index=0, id="r", scheduled=0.0, chunks=[(1.0, 16), *((1.0 + 0.02 * n, 1) for n in range(1, 17))]
    )

    assert tpot(msgspec.structs.replace(bundled, output_tokens=32)) == pytest.approx(0.02)
    assert tpot(msgspec.structs.replace(bundled, output_tokens=16)) is None


def test_what_is_unknown_meets_no_limit() -> None:
    without_usage = RequestRecord(index=0, id="r", scheduled=0.0, sent=0.0, chunks=[(0.1, 1), (0.2, 1)])
    in_one_chunk = RequestRecord(index=0, id="r", scheduled=0.0, sent=0.0, chunks=[(0.1, 32)], output_tokens=32)

    for record in (without_usage, in_one_chunk):
        assert meets(record, {"ttft": 101.0})
        assert not meets(record, {"tpot": 1e6})
        assert not meets(record, {"ttft": 101.0, "tpot": 1e6})


def test_a_failure_meets_no_limit_and_a_single_token_meets_any_tpot() -> None:
    assert not meets(FAILED, {})
    assert not meets(FAILED, {"ttft": 1000.0})
    assert meets(ONE_TOKEN, {"tpot": 0.001})


def test_limits_are_read_as_vllm_takes_them() -> None:
    assert parse_goodput(["ttft:200 tpot:50", "e2el:5000.5"]) == {"ttft": 200.0, "tpot": 50.0, "e2el": 5000.5}
    assert parse_goodput(["ttft:200,tpot:50, e2el:5000"]) == {"ttft": 200.0, "tpot": 50.0, "e2el": 5000.0}
    assert parse_goodput([]) == {}


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("itl:5", "write ttft, tpot or e2el"),
        ("ttft", "number of milliseconds"),
        ("ttft:", "number of milliseconds"),
        ("ttft:fast", "number of milliseconds"),
        ("ttft:0", "more than 0"),
        ("ttft:-5", "more than 0"),
        ("ttft:nan", "more than 0"),
        ("ttft:inf", "more than 0"),
        ("tpot:40", "tpot has a limit already"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_a_sentence(item: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        parse_goodput(["tpot:50", item])
    assert repr(item) in str(refusal.value)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 100) | st.sampled_from([0, 50, 90, 95, 99, 100])
)
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-9)


def test_a_percentile_of_nothing_is_unknown() -> None:
    assert percentile([], 50) is None


def test_each_metric_has_its_formula_beside_it() -> None:
    assert {"TTFT", "TPOT", "ITL", "E2EL", "Goodput"} <= set(FORMULAS)
    assert PERCENTILES == (50, 90, 95, 99)
