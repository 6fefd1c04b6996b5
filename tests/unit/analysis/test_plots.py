"""Figures are drawn for what a group has, follow the page's theme, and say SIMULATED."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.analysis import deployment, failed, group, manifest, request, run, write_pair

from pd_analysis import plots
from pd_analysis.frames import requests_of
from pd_analysis.load import load_runs
from pd_analysis.plots import style
from pd_analysis.plots.curves import headline
from pd_analysis.plots.timeline import in_flight
from pd_analysis.results import Group
from pd_contracts.names import Topology

ALL = {"ttft", "tpot", "gaps", "latency_breakdown", "energy", "power_timeline"}


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
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot.svg)) <= {style.ON_BAR}
        assert "http" not in plot.svg


def test_numbers_in_figures_keep_their_digits(pair: Group, drawn: dict[str, plots.Drawn]) -> None:
    for result in pair.results:
        assert result.tokens is not None
        assert f"{result.tokens.per_output:.2f}" in drawn["energy"].svg


def test_titles_say_the_numbers(pair: Group) -> None:
    one, two = (result.metrics.latencies["TPOT"].at(99) or 0.0 for result in pair.results)

    assert (
        headline(pair, "TPOT") == f"TPOT p99: combined {one * 1e3:.1f} ms, disagg {two * 1e3:.2f} ms ({one / two:.2f}×)"
    )


def test_what_was_not_measured_is_not_drawn_and_an_older_figure_goes(tmp_path: Path) -> None:
    (tmp_path / "energy.png").write_bytes(b"of an earlier report")

    names = {plot.name for plot in plots.draw(group(run([request(0), request(1)])), tmp_path)}

    assert names == {"ttft", "tpot", "gaps"}
    assert not (tmp_path / "energy.png").exists()


def test_a_run_without_a_success_has_no_latency_figure(tmp_path: Path) -> None:
    assert plots.draw(group(run([failed(0)])), tmp_path) == []


def test_many_runs_are_drawn(tmp_path: Path) -> None:
    runs = [
        run([request(n, ttft=0.1 + n / 100) for n in range(5)], manifest(Topology.DISAGG, run_id=f"r{number}"))
        for number in range(9)
    ]

    assert {plot.name for plot in plots.draw(group(*runs), tmp_path)} == {"ttft", "tpot", "gaps"}
    assert headline(group(*runs), "TTFT").startswith("TTFT p99 of 9 runs: ")


def test_a_label_cannot_break_out_of_a_figure(tmp_path: Path) -> None:
    hostile = deployment(label="<script>alert(1)</script> $x")
    drawn = plots.draw(group(run([request(0), request(1)], manifest(deployment=hostile))), tmp_path)

    assert "<script" not in "".join(plot.svg for plot in drawn)


def test_requests_in_flight_are_counted_between_send_and_end() -> None:
    rows = requests_of([request(0, 0.0, gaps=[9.9]), request(1, 5.0, gaps=[0.9]), failed(2, 2.0, sent=None)], {}).rows

    times, counts = in_flight(rows)

    assert counts[np.searchsorted(times, 1.0)] == 1
    assert counts[np.searchsorted(times, 5.5)] == 2
    assert counts[-1] == 0
