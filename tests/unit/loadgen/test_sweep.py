"""A sweep's file: its combinations, their folders, and what is refused before the first run."""

from pathlib import Path

import pytest

from pd_loadgen.series import sweep
from pd_loadgen.series.sweep import SweepError

FILE = """
model: m
options: {duration: 5, goodput: "ttft:200 tpot:50", ignore_eos: false, headers: {X-A: b}}
topologies:
  - {label: disagg, base_url: "http://one:1"}
  - {label: 2 combined, base_url: "http://two:2"}
input_output: [[512, 64], [16, 8]]
request_rates: [1, 2.5]
concurrency_prompts: [[4, 32]]
seeds: [0, 1]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "combos.yaml"
    path.write_text(text)
    return path


def test_every_combination_is_a_point_with_a_folder_of_its_own(tmp_path: Path) -> None:
    points = sweep.read(write(tmp_path, FILE))

    assert len(points) == len({point.name for point in points}) == 2 * 2 * 3 * 2
    assert points[0].name == "disagg-512x64-rate1-seed0"
    assert points[-1].name == "2_combined-16x8-concurrency4x32-seed1"


def test_a_point_has_all_its_options(tmp_path: Path) -> None:
    points = {point.name: point.given for point in sweep.read(write(tmp_path, FILE))}

    assert points["disagg-16x8-rate2.5-seed1"] == {
        "model": "m",
        "url": "http://one:1",
        "label": "disagg",
        "duration": "5",
        "goodput": "ttft:200 tpot:50",
        "ignore_eos": "off",
        "headers": '{"X-A":"b"}',
        "input_tokens": "16",
        "output_tokens": "8",
        "rate": "2.5",
        "seed": "1",
    }
    closed = points["disagg-16x8-concurrency4x32-seed1"]
    assert (closed["arrival"], closed["max_concurrency"], closed["requests"]) == ("closed", "4", "32")


def test_a_file_of_options_alone_is_one_run(tmp_path: Path) -> None:
    assert [point.name for point in sweep.read(write(tmp_path, "options: {rate: 3}"))] == ["run"]


def test_a_points_options_become_the_command_lines(tmp_path: Path) -> None:
    words = sweep.arguments(sweep.read(write(tmp_path, FILE))[0], Path("out"))

    assert "--no-ignore-eos" in words
    assert "--goodput=ttft:200 tpot:50" in words
    assert words[-1] == "--out=out/disagg-512x64-rate1-seed0"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rates: [1]", "rates"),
        ("request_rates: [0]", "request_rates"),
        ("input_output: [[1]]", "input_output"),
        ("options: {speed: 3}", "speed is not an option"),
        ("options: {out: x}", "out is not an option"),
        ("options: {dataset: jsonl}", "point run: dataset jsonl needs its file"),
        ("request_rates: [1, 1]", "would share the folder rate1"),
        ("topologies: [{label: a}, {label: a}]", "would share the folder a"),
        (
            "request_rates: [.inf, 2]",
            "point rateinf: rate inf sends all requests at once: say how many with --requests",
        ),
        ("options: {sharegpt_output_len: 5}", "sharegpt_output_len is not an option"),
        ("- 1", "combos.yaml"),
        ("a: [", "combos.yaml"),
        ("", "combos.yaml"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_run(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SweepError) as caught:
        sweep.read(write(tmp_path, text))

    assert sentence in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="there is no such file or folder"):
        sweep.read(tmp_path / "none.yaml")


def test_vllms_names_and_an_infinite_rate_are_taken_in_files_too(tmp_path: Path) -> None:
    text = "options: {num_prompts: 40}\nbase_url: http://h:1/v1\nrequest_rates: [.inf, inf]\n"
    with pytest.raises(SweepError, match="share the folder rateinf"):
        sweep.read(write(tmp_path, text))
    (point,) = sweep.read(write(tmp_path, text.replace(", inf]", "]")))

    assert (point.name, point.given["rate"], point.given["requests"]) == ("rateinf", "inf", "40")
    assert point.given["duration"] == "inf"


def test_a_password_in_the_file_is_on_no_command_line(tmp_path: Path) -> None:
    (point,) = sweep.read(write(tmp_path, 'base_url: "http://me:pass@h:1"'))

    assert point.secret == "me:pass"
    assert not [word for word in sweep.arguments(point, tmp_path) if "pass@" in word or "me:" in word]


def test_a_byte_order_mark_before_the_file_is_no_part_of_it(tmp_path: Path) -> None:
    assert sweep.read(write(tmp_path, "\ufeff" + FILE)) == sweep.read(write(tmp_path, FILE))
