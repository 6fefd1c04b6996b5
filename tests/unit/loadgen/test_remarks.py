"""What the answers of a run show about the server, said in the manifest's notes."""

from typing import Any

from pd_contracts.records import Failure, RequestRecord
from pd_loadgen.results.remarks import remarks


def answered(index: int, **fields: Any) -> RequestRecord:
    told = {"chunks": [(1.0, 1), (2.0, 1)], "output_tokens": 8, "requested_output_tokens": 8, **fields}
    return RequestRecord(index=index, id=str(index), scheduled=0.0, **told)


def test_a_server_that_does_as_asked_gets_no_remark() -> None:
    assert list(remarks([answered(0), answered(1)], ignore_eos=True)) == []


def test_answers_without_usage_are_counted() -> None:
    (remark,) = remarks([answered(0), answered(1, output_tokens=None)], ignore_eos=True)

    assert remark.startswith("1 of 2 answers carry no usage: ")


def test_an_ignored_ignore_eos_is_told_with_the_shortest_answer() -> None:
    records = [answered(0), answered(1, output_tokens=3), answered(2, output_tokens=7)]
    (remark,) = remarks(records, ignore_eos=True)

    assert remark.startswith("2 of 3 answers are shorter than asked (3 of 8 tokens): ")
    assert list(remarks(records, ignore_eos=False)) == []


def test_warm_ups_and_failures_are_not_remarked_upon() -> None:
    failure = Failure(kind="truncated", message="cut")

    assert (
        list(
            remarks(
                [answered(0, warmup=True, output_tokens=1), answered(1, error=failure, output_tokens=None)],
                ignore_eos=True,
            )
        )
        == []
    )
