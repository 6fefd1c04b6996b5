from pathlib import Path
from typing import Any

import msgspec
import pytest

from pd_contracts.names import Role
from pd_contracts.records import (
    SCHEMA_VERSION,
    Clock,
    Deployment,
    GpuHeader,
    GpuInfo,
    GpuSample,
    Manifest,
    RecordError,
    RequestRecord,
    Workload,
    append_lines,
    encode_line,
    read_json,
    read_lines,
    schedule_hash,
    write_json,
)
from pd_contracts.timing import Stages


def sample(t: float) -> GpuSample:
    return GpuSample(t=t, index=0, role=Role.PREFILL, power_w=100.0, energy_mj=5.0)


def manifest() -> Manifest:
    return Manifest(
        run_id="r",
        created="2026-01-01T00:00:00Z",
        clock=Clock(wall=1.0, monotonic=2.0),
        deployment=Deployment(),
        workload=Workload(dataset="random", arrival="poisson", rate=1.0, duration_s=2.0, requests=2, seed=0),
        schedule_hash="abc",
    )


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_lines_are_read_back_as_they_were(path: Path) -> None:
    records = [
        RequestRecord(index=0, id="a", scheduled=1.5),
        RequestRecord(
            index=1,
            id="b",
            scheduled=2.5,
            sent=2.6,
            chunks=[(3.0, 1), (3.1, 2)],
            stages=Stages(queue=1, prefill=2, kv_and_first_decode=3, decode=4, decode_instance="decode-0"),
        ),
    ]

    append_lines(path, records[:1])
    append_lines(path, [])
    append_lines(path, records[1:])

    assert list(read_lines(path, RequestRecord)) == records


def test_what_is_unknown_is_left_out_of_a_sample_or_null_but_never_zero() -> None:
    line = msgspec.json.decode(
        encode_line(GpuSample(t=1.0, index=0, utilization=0.0, errors={"power_w": "Not Supported"}))
    )

    assert line == {"t": 1.0, "index": 0, "utilization": 0.0, "errors": {"power_w": "Not Supported"}}


def test_a_torn_last_line_is_left_out(path: Path) -> None:
    append_lines(path, [sample(1.0), sample(2.0)])
    with path.open("ab") as file:
        file.write(encode_line(sample(3.0))[:-1])

    assert [record.t for record in read_lines(path, GpuSample)] == [1.0, 2.0]


def test_the_header_line_can_be_skipped(path: Path) -> None:
    header = GpuHeader(
        clock=Clock.now(), backend="nvml", simulated=False, interval_s=0.1, gpus=[GpuInfo(index=0, name="H200")]
    )
    append_lines(path, [header, sample(1.0)])

    assert next(read_lines(path, GpuHeader)) == header
    assert [record.t for record in read_lines(path, GpuSample, skip=1)] == [1.0]


@pytest.mark.parametrize(
    "broken",
    [
        b"{\n",
        b"\n",
        b"[]\n",
        b'{"t": 1.0}\n',
        b'{"t": "late", "index": 0}\n',
        b'{"t":1,"index":0,"errors":{"a":"\xff"}}\n',
    ],
)
def test_a_broken_line_in_the_middle_is_named_by_file_and_number(path: Path, broken: bytes) -> None:
    path.write_bytes(encode_line(sample(1.0)) + broken + encode_line(sample(2.0)))
    lines = read_lines(path, GpuSample)

    assert next(lines).t == 1.0
    with pytest.raises(RecordError) as refusal:
        next(lines)
    assert str(refusal.value).startswith(f"{path}:2: ")


def test_keys_of_a_newer_minor_writer_are_ignored(path: Path) -> None:
    path.write_bytes(b'{"t":1.0,"index":0,"fan_speed":{"left":1}}\n')

    assert list(read_lines(path, GpuSample)) == [GpuSample(t=1.0, index=0)]


def test_a_json_file_is_read_back_as_it_was_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "manifest.json"

    write_json(path, manifest())
    write_json(path, manifest())

    assert read_json(path, Manifest) == manifest()
    assert [entry.name for entry in path.parent.iterdir()] == ["manifest.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, manifest())

    with pytest.raises(TypeError):
        write_json(path, {"clock": object()})

    assert read_json(path, Manifest) == manifest()


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, msgspec.structs.replace(manifest(), schema_version=SCHEMA_VERSION + 1))

    with pytest.raises(RecordError, match=r"newer than .*; update pdstack"):
        read_json(path, Manifest)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"schema_version": "one"}', b'{"run_id": "\xff"}', b'{"x":' * 5000]
)
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)

    with pytest.raises(RecordError) as refusal:
        read_json(path, Manifest)
    assert str(refusal.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no such file or folder"):
        read_json(tmp_path / "manifest.json", Manifest)


SCHEDULE = [(0.0, 128, 16), (0.512345, 200, 32)]


@pytest.mark.parametrize(
    ("changed", "seed"),
    [
        (SCHEDULE[:1], 0),
        (SCHEDULE[::-1], 0),
        ([(0.0, 128, 16), (0.512346, 200, 32)], 0),
        ([(0.0, 128, 17), (0.512345, 200, 32)], 0),
        ([(0.0, 1281, 6), (0.512345, 200, 32)], 0),
        (SCHEDULE, 1),
    ],
)
def test_the_hash_tells_schedules_apart(changed: Any, seed: int) -> None:
    assert schedule_hash(SCHEDULE, 0) == schedule_hash(list(SCHEDULE), 0)
    assert schedule_hash(changed, seed) != schedule_hash(SCHEDULE, 0)


def test_the_clock_reads_both_clocks() -> None:
    earlier, later = Clock.now(), Clock.now()

    assert later.monotonic >= earlier.monotonic
    assert earlier.wall > 1.6e9
