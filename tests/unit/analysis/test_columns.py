"""Whole columns give what the contracts define for one request, whatever the records and however they are cut into batches."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.analysis import failed, request, run

from pd_analysis.records.collector import Collector, requests_of
from pd_analysis.records.columns import pooled, quantiles
from pd_contracts import latency
from pd_contracts.records import RequestRecord

LIMITS = {"ttft": 200.0, "tpot": 50.0, "e2el": 900.0}
GAPS = st.lists(st.floats(0, 0.4).map(lambda value: round(value, 4)), max_size=6)


@st.composite
def some_records(draw: st.DrawFn) -> list[RequestRecord]:
    records = []
    for index in range(draw(st.integers(1, 12))):
        fields: dict[str, Any] = {"warmup": draw(st.booleans())}
        kind = draw(st.sampled_from(["served", "failed", "silent", "cut", "no usage"]))
        made = request(index, draw(st.floats(0, 50)), ttft=draw(st.floats(0, 0.5)), gaps=draw(GAPS))
        if kind == "failed":
            made = failed(index, made.scheduled, **fields)
        else:
            kinds: dict[str, dict[str, Any]] = {"silent": {"chunks": []}, "cut": {"error": failed(0).error}}
            fields |= kinds.get(kind, {})
            fields |= {"output_tokens": None} if kind == "no usage" else {}
            made = RequestRecord(**{name: getattr(made, name) for name in made.__struct_fields__} | fields)
        records.append(made)
    return records


@given(records=some_records())
@hypothesis_settings(max_examples=60, deadline=None)
def test_columns_are_the_contracts_definitions(records: list[RequestRecord]) -> None:
    found = requests_of(records, LIMITS).rows.set_index("index")

    for record in records:
        row: Any = found.loc[record.index]
        gaps = latency.itl(record)
        expected = {
            "ttft": latency.ttft(record),
            "ttft_from_send": latency.ttft_from_send(record),
            "e2el": latency.e2el(record),
            "tpot": latency.tpot(record),
            "longest_gap": max(gaps) if gaps else None,
        }
        for name, value in expected.items():
            assert math.isnan(row[name]) if value is None else row[name] == pytest.approx(value), name
        assert (row["ok"], row["good"]) == (latency.succeeded(record), latency.meets(record, LIMITS))


@given(records=some_records(), size=st.integers(1, 5))
@hypothesis_settings(max_examples=30, deadline=None)
def test_batches_change_nothing(records: list[RequestRecord], size: int) -> None:
    collector = Collector(LIMITS)
    for start in range(0, len(records), size):
        collector.add(records[start : start + size])
    whole, cut = requests_of(records, LIMITS), collector.finish()

    assert whole.rows.equals(cut.rows)
    assert np.array_equal(whole.gaps, cut.gaps)
    assert whole.excerpt.equals(cut.excerpt)


def test_gaps_are_those_of_successful_measured_requests_in_order_of_length() -> None:
    records = [request(0, gaps=[0.3, 0.1]), request(1, gaps=[9.0], warmup=True), request(2, error=failed(2).error)]

    assert requests_of(records, {}).gaps.tolist() == pytest.approx([0.1, 0.3])


def test_the_excerpt_holds_when_each_gap_ended() -> None:
    kept = requests_of([request(7, 1.0, ttft=0.5, gaps=[0.25, 0.5])], {}, excerpt=(1.8, 9.0)).excerpt

    assert kept.to_dict("list") == {"index": [7], "t": [2.25], "gap": [0.5]}


def test_a_cut_turns_early_requests_into_warmup() -> None:
    found = requests_of([request(index, float(index)) for index in range(4)], {}, cut=1.5)

    assert found.measured["index"].tolist() == [2, 3]
    assert found.gaps.size == 4


def test_equal_outputs_have_equal_numbers_and_unknown_ones_have_none() -> None:
    hashes = requests_of(
        [request(0, output_hash="ab"), request(1, output_hash="ab"), request(2, output_hash="cd"), failed(3)], {}
    ).rows["output_hash"]

    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[3] == 0


def test_pooling_is_measuring_all_at_once() -> None:
    one, two = ([request(index, ttft=0.1 * index, gaps=[0.01 * index]) for index in part] for part in ((1, 2), (3, 4)))

    together = pooled([run(one).requests, run(two).requests])

    assert together.ordered("ttft").tolist() == run([*one, *two]).requests.ordered("ttft").tolist()
    assert together.gaps.tolist() == run([*one, *two]).requests.gaps.tolist()


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50), percent=st.floats(0, 100))
def test_quantiles_of_sorted_values_are_numpys(values: list[float], percent: float) -> None:
    assert quantiles(np.sort(values), [percent])[0] == pytest.approx(np.percentile(values, percent))
