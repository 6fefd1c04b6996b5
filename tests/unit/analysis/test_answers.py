"""Answers that are shorter than asked are a doubt, because runs with different outputs do different work."""

import msgspec
import pytest
from support.analysis import group, manifest, request, run, workload

from pd_analysis.doubts.one_load import doubts
from pd_contracts.records import Manifest, RequestRecord

ABOUT = "shorter than asked"


def answered(written: int, asked: int | None = 8) -> list[RequestRecord]:
    records = [request(index, index * 0.1, gaps=(0.02,) * 7) for index in range(20)]
    records[3] = msgspec.structs.replace(records[3], output_tokens=written)
    return [msgspec.structs.replace(record, requested_output_tokens=asked) for record in records]


def found(records: list[RequestRecord], about: Manifest) -> list[str]:
    return [doubt.sentence for doubt in doubts(group(run(records, about))) if ABOUT in doubt.sentence]


def test_an_ignored_ignore_eos_is_a_doubt_with_its_numbers() -> None:
    (sentence,) = found(answered(3), manifest())

    assert "1 of 20 answers are shorter than asked (3 of 8 tokens)" in sentence


@pytest.mark.parametrize(
    ("records", "about"),
    [
        (answered(8), manifest()),
        (answered(3), manifest(workload=workload(options={"ignore_eos": "off"}))),
        (answered(3), manifest(command=["pd-loadgen", "run", "--no-ignore-eos"])),
        (answered(3, asked=None), manifest()),
    ],
    ids=["as asked", "not asked for", "not asked for by an older version", "imported"],
)
def test_answers_of_the_required_length_are_no_doubt(records: list[RequestRecord], about: Manifest) -> None:
    assert found(records, about) == []
