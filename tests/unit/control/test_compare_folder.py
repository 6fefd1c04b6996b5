"""The results folder of a comparison: no results are lost, and no other files are taken for results."""

import errno
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from pd_contracts.folders import FolderError
from pd_contracts.records import (
    MANIFEST,
    NOT_MEASURED,
    SUMMARY,
    ClientHealth,
    Clock,
    Deployment,
    Manifest,
    Missing,
    NotMeasured,
    Workload,
    read_json,
    write_json,
)
from pd_control.compare.folder import Results

WORDS = ["--rate=4", "--seed=0"]


def written(
    results: Results,
    *,
    complete: bool = True,
    valid: bool = True,
    words: list[str] = WORDS,
    attained: float | None = 0.95,
) -> None:
    client = ClientHealth(valid=valid, dispatch_lag_ms={}, receive_lag_ms={})
    manifest = Manifest(
        run_id="r",
        created="2026-01-01T00:00:00Z",
        clock=Clock.now(),
        deployment=Deployment(),
        workload=Workload(dataset="random", arrival="poisson", rate=1, duration_s=1, requests=1, seed=0),
        schedule_hash="h",
        complete=complete,
        client=client,
        command=["pd-loadgen", "run", *words, "--url=http://elsewhere", "--model=m", "--out=x", "--overwrite"],
    )
    folder = results.run("2c", "p")
    write_json(folder / MANIFEST, manifest)
    share = {} if attained is None else {"attainment": {"all": attained}}
    (folder / SUMMARY).write_bytes(msgspec.json.encode({"completed": 8, "failed": 2, "pdstack": share}))


@pytest.fixture(name="results")
def _results(tmp_path: Path) -> Results:
    return Results(tmp_path / "out")


def test_a_complete_run_is_done_wherever_it_was_sent(results: Results) -> None:
    assert not results.done("2c", "p", WORDS)
    written(results)

    assert results.done("2c", "p", WORDS)


@pytest.mark.parametrize("how", ["complete", "valid"])
def test_an_interrupted_run_or_a_late_client_is_measured_again(results: Results, how: str) -> None:
    written(results, complete=how != "complete", valid=how != "valid")

    assert not results.done("2c", "p", WORDS)


def test_a_run_with_other_options_is_neither_overwritten_nor_believed(results: Results) -> None:
    written(results, words=["--rate=5", "--seed=0"])

    with pytest.raises(FolderError, match="other options"):
        results.done("2c", "p", WORDS)


def test_an_outcome_is_the_share_within_the_limits(results: Results) -> None:
    assert results.outcome("2c", "p") is None
    written(results)

    outcome = results.outcome("2c", "p")
    assert outcome is not None
    assert (outcome.attainment, outcome.client_in_time) == (0.95, True)


def test_without_limits_the_share_served_counts(results: Results) -> None:
    written(results, attained=None)

    outcome = results.outcome("2c", "p")
    assert outcome is not None
    assert outcome.attainment == 0.8


def test_another_model_is_another_comparison(results: Results) -> None:
    results.prepare({"MODEL": "a"}, restart=False)
    results.prepare({"MODEL": "a"}, restart=False)

    with pytest.raises(FolderError, match="MODEL=a, but it is b now"):
        results.prepare({"MODEL": "b"}, restart=False)
    results.prepare({"MODEL": "b"}, restart=True)


@pytest.mark.parametrize("restart", [True, False])
def test_what_no_comparison_wrote_is_left_alone(results: Results, restart: bool) -> None:
    results.prepare({}, restart=False)
    written(results)
    thesis = results.root / "thesis" / "chapter.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")

    with pytest.raises(FolderError, match="thesis, which was not written by a comparison"):
        results.prepare({}, restart=restart)
    assert thesis.read_text() == "years of work"


def test_a_restart_begins_anew(results: Results) -> None:
    results.prepare({}, restart=False)
    written(results)
    results.prepare({}, restart=True)

    assert not (results.root / "2c").exists()


def test_a_folder_that_cannot_take_it_is_told_before_anything_changes(results: Results) -> None:
    results.root.parent.mkdir(exist_ok=True)
    (results.root.parent / "file").write_text("")
    with pytest.raises(FolderError, match="is a file"):
        Results(results.root.parent / "file" / "out").check({}, restart=False)

    results.check({"MODEL": "a"}, restart=False)
    assert not results.root.exists()
    results.prepare({"MODEL": "a"}, restart=False)
    with pytest.raises(FolderError, match="MODEL=a, but it is b now"):
        results.check({"MODEL": "b"}, restart=False)
    results.check({"MODEL": "b"}, restart=True)
    assert (results.root / "comparison.json").exists()


def test_a_comparison_of_plain_engines_can_gain_routed_ones_which_then_agree_in_their_objectives(
    results: Results,
) -> None:
    plain, routed = {"MODEL": "a"}, {"MODEL": "a", "TTFT_SLO_MS": "300"}
    for identity in (plain, routed, plain):
        results.prepare(identity, restart=False)

    with pytest.raises(FolderError, match="TTFT_SLO_MS=300, but it is 500 now"):
        results.check({**routed, "TTFT_SLO_MS": "500"}, restart=False)


def test_what_is_missing_is_written_down_for_the_report(results: Results) -> None:
    results.prepare({}, restart=False)
    results.explain([NotMeasured(what="1p1d", reason="decode-0 ended")])
    assert read_json(results.root / NOT_MEASURED, Missing).parts[0].what == "1p1d"

    results.explain([])
    assert not (results.root / NOT_MEASURED).exists()


def test_a_full_disk_ends_a_comparison_with_the_remedy(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    results.prepare({"model": "a"}, restart=False)
    results.refuse_full_disk()
    usage = shutil.disk_usage(results.root)._replace(free=300_000)
    monkeypatch.setattr("pd_control.compare.folder.shutil.disk_usage", lambda _: usage)

    with pytest.raises(FolderError, match=r"No space left.*free some space.*the same command continues"):
        results.refuse_full_disk()


def test_what_is_missing_may_not_fit_either(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pd_control.compare.folder.write_json", full)

    with pytest.raises(FolderError, match="No space left"):
        results.explain([NotMeasured(what="a", reason="b")])


def test_folders_of_runs_that_could_not_begin_do_not_stand_in_the_way(results: Results) -> None:
    results.prepare({"model": "a"}, restart=False)
    folder = results.run("1p1d", "512x64-rate2-seed0")
    folder.mkdir(parents=True)
    (folder / ".reserve").touch()

    results.check({"model": "a"}, restart=False)


def test_a_run_that_ended_early_says_why(results: Results) -> None:
    written(results, complete=False)
    path = results.run("2c", "p") / MANIFEST
    write_json(path, msgspec.structs.replace(read_json(path, Manifest), notes=["a note", "no space was left"]))

    assert results.remark("2c", "p") == "no space was left"
    assert results.remark("2c", "another") == ""
