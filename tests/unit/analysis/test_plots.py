"""Figures are drawn for what a group has, follow the page's theme, and say SIMULATED."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.analysis import deployment, failed, group, manifest, request, run, workload, write_pair, write_realistic

from pd_analysis import plots
from pd_analysis.numbers.evaluation import Group, evaluate
from pd_analysis.numbers.sweep import sweeps
from pd_analysis.plots import palette, style
from pd_analysis.plots.curves import headline
from pd_analysis.plots.sweep_axes import along
from pd_analysis.plots.timeline import phases
from pd_analysis.records.collector import requests_of
from pd_analysis.records.reader import load_runs
from pd_contracts.names import Topology

ALL = {
    *("ttft", "tpot", "gaps", "latency_breakdown", "ttft_breakdown", "kv_handoff_cdf", "slo_scale_attainment"),
    *("interference_timeline", "energy", "power_timeline"),
}
OF_LATENCY = {"ttft", "tpot", "gaps", "slo_scale_attainment", "interference_timeline"}
SWEPT = {
    "latency_rps_per_gpu_comparison_p50",
    *(f"latency_rps_per_gpu_comparison_p{percentile}" for percentile in (90, 95, 99)),
    *("slo_attainment_rps_per_gpu_comparison", "goodput_per_gpu", "throughput_interactivity_pareto"),
    *("energy_per_token_by_role", "energy_slo"),
}


@pytest.fixture(name="pair", scope="module")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Group:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root, requests=60, tokens=16, simulated=True)
    return group(*load_runs([root]))


@pytest.fixture(name="drawn", scope="module")
def _drawn(pair: Group, tmp_path_factory: pytest.TempPathFactory) -> dict[str, plots.Drawn]:
    return {plot.name: plot for plot in plots.draw(pair, tmp_path_factory.mktemp("plots"))}


def test_a_full_pair_has_every_figure_as_png_and_svg(drawn: dict[str, plots.Drawn]) -> None:
    assert set(drawn) == ALL
    for plot in drawn.values():
        assert plot.path.read_bytes().startswith(b"\x89PNG")
        assert plot.path.with_suffix(".svg").is_file()


def test_every_figure_of_a_simulated_run_says_so(drawn: dict[str, plots.Drawn]) -> None:
    # once across the axes, once in the corner
    assert {name: plot.svg.count("SIMULATED") >= 2 for name, plot in drawn.items()} == dict.fromkeys(ALL, True)


def test_figures_in_the_page_take_every_colour_from_the_theme(drawn: dict[str, plots.Drawn]) -> None:
    for plot in drawn.values():
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot.svg)) <= {palette.ON_BAR}
        assert "http" not in plot.svg


def test_the_figure_of_gaps_says_which_seconds_its_numbers_are_of(tmp_path: Path) -> None:
    records = [request(number, number / 10, ttft=0.05, gaps=[0.02] * 20) for number in range(200)]
    (svg,) = (plot.svg for plot in plots.draw(group(run(records)), tmp_path) if plot.name == "interference_timeline")

    assert "longest of the 5 s drawn: 20.0 ms" in svg
    assert "The p99 is over up to 20.3 s in the middle of each run, of which 5 s are drawn." in svg


def test_numbers_in_figures_keep_their_digits(pair: Group, drawn: dict[str, plots.Drawn]) -> None:
    for result in pair.results:
        assert result.tokens is not None
        assert f"{result.tokens.per_output:.2f}" in drawn["energy"].svg


def test_titles_say_the_numbers(pair: Group) -> None:
    (one, slow), (two, slower) = (
        [(latency.at(percentile) or 0.0) * 1e3 for percentile in (50, 99)]
        for latency in (result.metrics.latencies["TPOT"] for result in pair.results)
    )

    # disagg is the second run, and named first because it is better
    assert headline(pair, "TPOT") == (
        f"TPOT p50 and p99: disagg {two:.2f} and {slower:.2f} ms, combined {one:.1f} and {slow:.1f} ms"
    )


def test_a_line_ends_inside_no_number_and_no_word_beside_chinese() -> None:
    text = "p50 和 p99：combined 日本語 label 8.55 和 9.35 ms；e 32.4 和 59.3 ms"

    for most in range(8, 60):
        lines = style.wrapped(text, most)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert set(re.findall(r"[0-9.]+|[a-z]+", text)) == {
            word for line in lines for word in re.findall(r"[0-9.]+|[a-z]+", line)
        }


def test_energy_that_is_unknown_is_said_in_the_figure(tmp_path: Path) -> None:
    write_pair(tmp_path, requests=20, tokens=4)
    (tmp_path / "disagg" / "gpu.jsonl").unlink()
    (figure,) = [
        each for each in plots.draw(group(*load_runs([tmp_path])), tmp_path / "out", "en") if each.name == "energy"
    ]

    assert "Unknown for disagg: see the doubts." in figure.svg
    assert "Each panel" not in figure.svg


def test_what_was_not_measured_is_not_drawn_and_an_older_figure_goes(tmp_path: Path) -> None:
    (tmp_path / "energy.png").write_bytes(b"of an earlier report")

    names = {plot.name for plot in plots.draw(group(run([request(0), request(1)])), tmp_path)}

    assert names == OF_LATENCY
    assert not (tmp_path / "energy.png").exists()


def test_a_run_without_a_success_has_no_latency_figure(tmp_path: Path) -> None:
    assert plots.draw(group(run([failed(0)])), tmp_path) == []


def test_many_runs_are_drawn(tmp_path: Path) -> None:
    runs = [
        run([request(n, ttft=0.1 + n / 100) for n in range(5)], manifest(Topology.DISAGG, run_id=f"r{number}"))
        for number in range(9)
    ]

    assert {plot.name for plot in plots.draw(group(*runs), tmp_path)} == OF_LATENCY
    assert headline(group(*runs), "TTFT").startswith("TTFT p50 and p99, best and last of 9: ")


def test_a_label_cannot_break_out_of_a_figure(tmp_path: Path) -> None:
    hostile = deployment(label="<script>alert(1)</script> $x")
    drawn = plots.draw(group(run([request(0), request(1)], manifest(deployment=hostile))), tmp_path)

    assert "<script" not in "".join(plot.svg for plot in drawn)


def test_requests_wait_until_their_first_token_and_write_until_their_end() -> None:
    rows = requests_of(
        [request(0, 0.0, gaps=[9.9]), request(1, 5.0, ttft=0.3, gaps=[0.9]), failed(2, 2.0, sent=None)], {}
    ).rows

    times, waiting, writing = phases(rows)

    def at(when: float) -> tuple[float, float]:
        position = int(np.searchsorted(times, when))
        return float(waiting[position]), float(writing[position])

    assert at(1.0) == (0, 1)
    assert at(5.2) == (1, 1)
    assert at(5.6) == (0, 2)
    assert (waiting[-1], writing[-1]) == (0, 0)


def test_a_sweep_has_every_figure_under_its_fixed_name(tmp_path: Path) -> None:
    for rate in (8.0, 16.0):
        for topology in Topology:
            write_realistic(tmp_path / f"{rate:g}" / topology, topology, rate=rate, requests=40, tokens=8)
    found = sweeps(evaluate(load_runs([tmp_path])))

    drawn = [*plots.draw_sweep(found[0], tmp_path / "plots"), *plots.draw_heat(found, tmp_path / "plots")]

    assert {plot.name for plot in drawn} == {*SWEPT, "sweep_heat_map"}
    for plot in drawn:
        assert plot.path.is_file()
        assert plot.path.with_suffix(".svg").is_file()
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot.svg)) <= {palette.ON_BAR}


def test_ticks_of_requests_in_flight_are_whole() -> None:
    closed = [
        run(
            [request(number, number * 0.1) for number in range(20)],
            manifest(workload=workload(arrival="closed", max_concurrency=amount), deployment=deployment(gpus=None)),
        )
        for amount in (1, 4)
    ]
    (sweep,) = sweeps(evaluate(closed))
    axes = Figure().subplots()
    axes.plot([1, 4], [1, 2])
    along(axes, sweep)

    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_figures_of_an_earlier_report_go(tmp_path: Path) -> None:
    for name in ("sweep_heat_map.png", "2/ttft.svg", "mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"old")

    plots.clear(tmp_path)

    assert [path.name for path in tmp_path.rglob("*.*")] == ["mine.png"]
