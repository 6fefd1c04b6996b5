"""From the command line to a comparison."""

import argparse
import re
from pathlib import Path

import pytest

from pd_control.cli.options import parser
from pd_control.compare import loads, request, stages
from pd_control.compare.deployments import Spec
from pd_control.compare.loads import Load, Offer, Point, arguments, command_line
from pd_control.compare.plan import OVERHEAD_S, STARTS_S, Comparison, seconds, seconds_of
from pd_control.compare.presets import COMPARE, DEMO
from pd_control.planning.gpus import PlanError
from pd_loadgen.workload import plan


def asked(*words: str, gpus: int = 2, size: int = 1, manner: str = "") -> Comparison:
    given: argparse.Namespace = parser().parse_args(["compare", "--engine", "sim", *words])
    more = request.pass_through(given.loadgen)
    return request.comparison(given, COMPARE["sim"], range(gpus), size=size, more=more, title="T", manner=manner)


def test_the_shortest_command_compares_plain_with_what_fits_and_finds_rates() -> None:
    found = asked()

    assert [spec.name for spec in found.deployments] == ["2c", "1p1d"]
    assert found.offer.searches
    assert [load.name for load in found.offer.loads] == ["512x64", "2048x128"]
    assert found.points(Spec(combined=2)) == []


def test_given_rates_are_per_gpu_and_lengths_and_seeds_multiply_them() -> None:
    found = asked("--rates", "4,2", "--seeds", "0,1", "--input-output", "64:8", "--duration", "7")

    points = found.points(Spec(combined=2))
    assert [(point.rate_per_gpu, point.seed) for point in points] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    options = arguments(points[-1], found.offer, 2)
    assert (options["rate"], options["duration"], options["seed"]) == ("8", "7", "1")
    assert (options["input_tokens"], options["output_tokens"]) == ("64", "8")
    assert options["goodput"] == COMPARE["sim"].goodput


def test_each_load_can_have_rates_of_its_own() -> None:
    found = asked("--rates", "1,2/find", "--input-output", "64:8,128:8")

    assert [load.rates for load in found.offer.loads] == [[1, 2], []]
    assert found.offer.searches
    assert [point.load.name for point in found.points(Spec(combined=2))] == ["64x8", "64x8"]


def test_a_point_is_as_long_as_its_p99_needs_unless_told() -> None:
    offer = Offer(loads=loads.shapes("512:64"))

    assert [offer.seconds(rate) for rate in (0.5, 10, 100)] == [300, 100, 60]
    assert Offer(loads=loads.shapes("512:64"), duration_s=7).seconds(100) == 7


def test_classic_modes_are_measured_on_one_plain_engine() -> None:
    found = asked("--modes", "serve,phase-split,batch", "--rates", "1", "--input-output", "512:64")

    assert [spec.name for spec in found.stages] == ["2c", "1p1d", "1c"]
    assert [point.mode for point in found.points(Spec(combined=1))] == ["phase-split", "batch"]
    assert [point.mode for point in found.points(Spec(combined=2))] == ["serve"]


def test_combined_engines_of_another_manner_are_that_in_every_mode_and_in_containers() -> None:
    found = asked("--modes", "serve,batch", "--rates", "1", "--input-output", "512:64", manner="adaptive")

    assert [spec.name for spec in found.stages] == ["2c-adaptive", "1p1d", "1c-adaptive"]
    stages.refuse_unfit_for_containers(found.deployments)


def test_one_engine_serves_all_modes_at_once() -> None:
    found = asked("--modes", "serve,batch", "--rates", "1", "--input-output", "512:64", gpus=1)

    assert [spec.name for spec in found.stages] == ["1c"]
    assert [point.mode for point in found.points(Spec(combined=1))] == ["batch", "serve"]


def test_modes_alone_bring_up_one_engine_alone() -> None:
    found = asked("--modes", "phase-split")

    assert [spec.name for spec in found.stages] == ["1c"]


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.0,2162,5\n2024-05-10 00:02:00.0,2399,6\n"


def test_a_trace_has_its_own_times_and_is_offered_whole(tmp_path: Path) -> None:
    trace = tmp_path / "azure day.csv"
    trace.write_text(AZURE)
    found = asked("--trace", str(trace), "--", "--time-scale", "0.5")

    (point,) = found.points(Spec(combined=2))
    assert point.name == "trace-azure_day-seed0"
    options = arguments(point, found.offer, 2)
    assert (options["arrival"], options["trace"], options["time_scale"]) == ("replay", str(trace), "0.5")
    assert options["duration"] == "inf"
    assert point.load.length_s == 60
    assert "rate" not in options


def test_a_trace_that_the_load_generator_cannot_hold_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MOST_TOKENS", 4560)
    (tmp_path / "t.csv").write_text(AZURE)

    with pytest.raises(PlanError, match="2 requests with 4,561 prompt tokens in all"):
        asked("--trace", str(tmp_path / "t.csv"))


def test_a_duration_cuts_a_trace(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(AZURE)
    found = asked("--trace", str(tmp_path / "t.csv"), "--duration", "60")

    (point,) = found.points(Spec(combined=2))
    assert arguments(point, found.offer, 2)["duration"] == "60"
    assert point.load.length_s == 0


@pytest.mark.parametrize("text", [None, "", "{}\n", "# A heading\n"])
def test_a_trace_that_cannot_be_read_is_refused_before_anything_starts(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(PlanError, match=r"t\.csv"):
        asked("--trace", str(tmp_path / "t.csv"))


def test_options_of_the_load_generator_pass_through() -> None:
    found = asked("--rates", "1", "--", "--temperature", "0.7", "--no-ignore-eos", "--processes=2")

    options = arguments(found.points(Spec(combined=2))[0], found.offer, 2)
    assert (options["temperature"], options["ignore_eos"], options["processes"]) == ("0.7", "off", "2")
    assert "--no-ignore-eos" in command_line(options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rates", "0"], "--rates '0'"),
        (["--rates", "abc"], "--rates 'abc'"),
        (["--rates", "inf"], "--rates 'inf'"),
        (["--rates", "1,1"], "twice"),
        (["--rates", "1/2/3"], "3 lists for 2 loads"),
        (["--seeds", "x"], "--seeds 'x'"),
        (["--seeds", "1.5"], "--seeds '1.5'"),
        (["--seeds", "-1"], "--seeds '-1'"),
        (["--seeds", "1,01"], "twice"),
        (["--seeds", ","], "--seeds ','"),
        (["--batch-sizes", "1,2"], "add it to --modes"),
        (["--rates", "2", "--start-rate", "4"], "remove --rates"),
        (["--trace", "t.csv", "--start-rate", "4"], "remove --rates, --start-rate"),
        (["--", "--dataset", "jsonl", "--dataset-path", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--", "--dataset", "sharegpt", "--dataset-path", "/nowhere.json"], "/nowhere.json"),
        (["--input-output", "512"], "512:64"),
        (["--input-output", "0:4"], "512:64"),
        (["--modes", "burst"], "choose from serve"),
        (["--goodput", "ttft:fast"], "ttft"),
        (["--goodput", ""], "limits"),
        (["--trace", "t.csv", "--rates", "1"], "remove --rates"),
        (["--trace", "t.csv", "--modes", "batch"], "--modes batch needs lengths"),
        (["--", "--url", "http://x"], "--url is set by pdctl"),
        (["--", "--rate", "3"], "use --rates"),
        (["--", "--nonsense", "3"], "no option --nonsense"),
        (["--", "--processes", "x"], "would refuse this load: --processes='x'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(words: list[str], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        asked(*words)


def test_lengths_that_no_engine_takes_are_refused_before_anything_starts() -> None:
    given = parser().parse_args(["compare", "--engine", "sim", "--input-output", "512:64,2048:7000", "--rates", "1"])

    def tried(longest: int | None) -> Comparison:
        return request.comparison(given, COMPARE["sim"], range(2), size=1, more={}, title="T", longest=longest)

    with pytest.raises(PlanError, match="2,048 → 7,000 tokens are more than MAX_MODEL_LEN=8192"):
        tried(8192)
    assert tried(9048) == tried(None)


def test_too_few_gpus_for_one_engine_are_refused() -> None:
    with pytest.raises(PlanError, match="2 GPUs are too few for an engine with TENSOR_PARALLEL_SIZE=4"):
        asked(size=4)


def test_the_time_grows_with_what_is_asked_for() -> None:
    short = asked("--rates", "1", "--duration", "10", "--input-output", "64:8")
    long = asked("--rates", "1,2", "--duration", "10", "--input-output", "64:8")

    assert 2 * (10 + 5) < seconds(short) < seconds(long) < seconds(asked())


def test_rates_that_a_search_has_measured_take_no_time_again() -> None:
    found = asked("--input-output", "64:8", "--duration", "10", "--modes", "serve")
    spec, load = found.deployments[0], found.offer.loads[0]
    whole = seconds_of(found, spec, found.points(spec))

    assert seconds_of(found, spec, [], {load.name: [1.0, 2.0]}) == whole - 2 * (10 + OVERHEAD_S)
    assert seconds_of(found, spec, [], {load.name: [1.0] * 99}) == STARTS_S["sim"]


def test_the_demo_is_one_load_at_one_rate() -> None:
    given = parser().parse_args(["demo", "--rates", "3"])
    found = request.comparison(given, DEMO["sim"], [0, 1], size=1, more={}, title="T")

    assert len(found.points(Spec(combined=2))) == 1
    assert found.points(Spec(combined=2))[0].rate_per_gpu == 3
    assert given.restart


def test_a_points_words_are_for_people() -> None:
    short, long = loads.shapes("512:64,4096:1024")

    assert Point(load=short, rate_per_gpu=2.5, seed=1).words == "512 → 64, 2.5 requests/s per GPU, seed 1"
    assert Point(load=long).words == "4,096 → 1,024, seed 0"
    assert Load(name="trace", options={"trace": "azure.csv"}, paced=False).title == "trace"


def test_comparisons_in_containers_do_not_meet_and_find_their_own_again(tmp_path: Path) -> None:
    one, two = (stages.project_of(tmp_path / name) for name in ("one", "two"))

    assert one != two
    assert one == stages.project_of(tmp_path / "two" / ".." / "one")
    assert re.fullmatch("[a-z0-9][a-z0-9_-]*", one)  # what compose takes
