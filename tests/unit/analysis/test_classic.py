"""The files of the classic scripts."""

import json
from pathlib import Path

import pytest
from support.analysis import write_pair

from pd_analysis.main import main
from pd_contracts.records import REQUESTS, RequestRecord, read_lines


@pytest.fixture(name="out", scope="module")
def _out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classic")
    disagg, _ = write_pair(folder, requests=20, tokens=8)
    assert main(["export", str(disagg), "--classic", "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_the_files_have_their_names(out: Path) -> None:
    assert {path.name for path in out.iterdir()} >= {
        "disaggregated_results.json",
        "prefill_gpu_data.json",
        "decode_gpu_data.json",
        "disaggregated_performance_analysis.png",
    }


def test_every_request_is_there_in_seconds(out: Path) -> None:
    told = json.loads((out / "disaggregated_results.json").read_text())
    records = [record for record in read_lines(out.parent / "disagg" / REQUESTS, RequestRecord) if not record.warmup]

    assert told["total_requests"] == len(records)
    for row, record in zip(told["results"], records, strict=True):
        first, last = record.chunks[0][0], record.chunks[-1][0]
        assert row["ttft"] == pytest.approx(first - record.scheduled)
        assert row["e2e_latency"] == pytest.approx(last - record.scheduled)
        assert row["tbt"] == pytest.approx((last - first) / 7)
        assert row["completion_tokens"] == 8
    assert told["summary"]["avg_ttft"] == pytest.approx(sum(row["ttft"] for row in told["results"]) / len(records))


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_gpu_data_are_one_roles_samples_and_their_statistics(out: Path, role: str) -> None:
    data = json.loads((out / f"{role}_gpu_data.json").read_text())
    told = json.loads((out / "disaggregated_results.json").read_text())

    powers = [sample["power_draw"] for sample in data["raw_data"]]
    assert data["role"] == role
    assert len({sample["gpu_id"] for sample in data["raw_data"]}) == 1
    assert data["statistics"]["power_draw"]["max"] == max(powers)
    assert data["statistics"]["power_draw"]["avg"] == pytest.approx(sum(powers) / len(powers))
    assert told[f"{role}_gpu_statistics"] == data["statistics"]


def test_a_plain_run_has_no_classic_form(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["export", str(out.parent / "combined"), "--classic", "--out", str(out.parent / "no")])

    assert status == 2
    assert "is not disaggregated" in capsys.readouterr().err
    assert not (out.parent / "no").exists()


def test_one_run_at_a_time(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(out.parent / "disagg"), str(out.parent / "combined")]

    assert main(["export", *runs, "--classic", "--out", str(out.parent / "no")]) == 2
    assert "takes one run" in capsys.readouterr().err
