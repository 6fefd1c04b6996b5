"""The run folder: nothing is lost, nothing is overwritten unasked."""

import errno
import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from pd_contracts.folders import FolderError
from pd_contracts.records import ClientHealth, Clock, Deployment, Manifest, RequestRecord, Workload, encode_line
from pd_loadgen.results.run_folder import (
    RESERVED_BYTES,
    RunFolder,
    check,
    holds_complete_run,
    make_run_id,
    new_path,
    next_free,
)

MADE = Manifest(
    run_id="r",
    created="",
    clock=Clock(wall=0.0, monotonic=0.0),
    deployment=Deployment(),
    workload=Workload(dataset="random", arrival="poisson", rate=1.0, duration_s=1.0, requests=1, seed=0),
    schedule_hash="",
)


def line(index: int = 0) -> bytes:
    return encode_line(RequestRecord(index=index, id=str(index), scheduled=float(index)))


def test_records_are_appended_and_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.append([line(0)])
    folder.append([line(1), line(2)])

    assert [record.index for record in folder.read()] == [0, 1, 2]


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append([line(0), line(1)])
    path = tmp_path / "requests.jsonl"
    path.write_bytes(path.read_bytes()[:-3])

    assert [record.index for record in folder.read()] == [0]


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    RunFolder(tmp_path).append([line()])

    with pytest.raises(FolderError, match="--overwrite"):
        RunFolder(tmp_path)
    assert RunFolder(tmp_path, overwrite=True).read() == []


def test_a_run_is_complete_once_it_was_sent_to_its_end_in_time(tmp_path: Path) -> None:
    def holds(manifest: Manifest, completed: int = 1) -> bool:
        folder = RunFolder(tmp_path, overwrite=True)
        folder.append([line()])
        folder.write_manifest(manifest)
        assert not holds_complete_run(tmp_path), "without a summary it was cut off"
        folder.write_summary({"completed": completed})
        return holds_complete_run(tmp_path)

    whole = msgspec.structs.replace(MADE, complete=True)
    assert not holds_complete_run(tmp_path)
    assert holds(whole)
    assert not holds(MADE)
    assert not holds(whole, completed=0)
    assert not holds(
        msgspec.structs.replace(whole, client=ClientHealth(valid=False, dispatch_lag_ms={}, receive_lag_ms={}))
    )
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(FolderError, match="--overwrite"):
        holds_complete_run(tmp_path)


def test_overwriting_leaves_other_files_alone(tmp_path: Path) -> None:
    RunFolder(tmp_path).append([line()])
    (tmp_path / "deployment.json").write_text("{}")
    (tmp_path / "gpu.jsonl").write_text("old")

    RunFolder(tmp_path, overwrite=True)

    assert {path.name for path in tmp_path.iterdir()} == {"deployment.json", "requests.jsonl", ".reserve"}


def test_an_attempt_that_sent_nothing_may_be_repeated(tmp_path: Path) -> None:
    RunFolder(tmp_path)

    RunFolder(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(FolderError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")


def test_the_next_free_folder_is_numbered(tmp_path: Path) -> None:
    assert next_free(tmp_path / "run") == tmp_path / "run"
    RunFolder(tmp_path / "run").append([line()])
    RunFolder(tmp_path / "run-2").append([line()])

    assert next_free(tmp_path / "run") == tmp_path / "run-3"


def test_run_ids_are_file_names_and_differ() -> None:
    ids = {make_run_id("1P1D (H200)/x") for _ in range(20)}

    assert len(ids) > 15
    assert all(name.startswith("1P1D--H200--x-2") and "/" not in name for name in ids)


def test_a_run_without_a_folder_goes_below_the_results() -> None:
    assert new_path("r", {}) == Path("results/r")
    assert new_path("r", {"RESULTS_DIR": "/results"}) == Path("/results/r")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "this runs as user"),
        (errno.EROFS, "read-only file system"),
        (errno.ENOSPC, "free some space"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_with_the_remedy(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(FolderError, match=remedy) as caught:
        check(tmp_path / "deep" / "run")

    assert str(caught.value).startswith(f"{tmp_path} cannot be written: {os.strerror(number)}; ")
    if number == errno.EACCES:
        assert f"sudo chown -R {os.getuid()}:{os.getgid()} {tmp_path}" in str(caught.value)
        assert ("PD_UID=" in str(caught.value)) == (tmp_path.stat().st_uid != 0)  # never: run as root


def test_looking_at_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check(tmp_path / "deep" / "run")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    RunFolder(tmp_path).append([line()])

    with pytest.raises(FolderError, match="already holds a run"):
        check(tmp_path)
    check(tmp_path, overwrite=True)


def test_the_room_that_was_kept_is_given_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    folder.release()

    assert kept == RESERVED_BYTES
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]


@pytest.mark.parametrize("fits", [0, 1])
def test_a_run_that_cannot_begin_on_a_full_disk_gives_back_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    """First the reserve does not fit, then the manifest."""
    whole, left = Path.write_bytes, [True] * fits

    def full(path: Path, data: bytes) -> int:
        if left:
            left.pop()
            return whole(path, data)
        whole(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(FolderError, match="No space left"):
        RunFolder(tmp_path).begin(MADE)

    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
