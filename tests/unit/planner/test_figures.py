"""Figures of one plan look alike where they show the same deployment."""

from types import SimpleNamespace
from typing import Any

from matplotlib.colors import to_hex

from pd_contracts.names import Connector
from pd_planner.report import charts
from pd_planner.report.colours import colour_of, key_of
from pd_planner.search.candidates import Candidate


def test_a_kind_of_deployment_has_one_colour_in_all_figures() -> None:
    kinds = [
        Candidate(prefills=0, others=2, connector=None),
        Candidate(prefills=1, others=1, connector=Connector.P2P),
        Candidate(prefills=0, others=2, connector=Connector.P2P, adaptive=True),
    ]
    operation: Any = SimpleNamespace(rate=1.0, within=1.0, joules=1.0, latencies={"ttft_p99": 1.0, "tpot_p99": 1.0})
    curves = [
        SimpleNamespace(fleet=SimpleNamespace(label=str(kind), gpus=2, candidate=kind), operations=[operation])
        for kind in kinds
    ]
    limits = SimpleNamespace(milliseconds={})
    found: Any = SimpleNamespace(curves=curves, question=SimpleNamespace(setting=SimpleNamespace(limits=limits)))

    figure = charts.rates(found)

    expected = [to_hex(colour_of(kind)) for kind in kinds]
    assert len(set(expected)) == 3
    for axes in figure.axes:
        assert [to_hex(str(line.get_color())) for line in axes.get_lines()] == expected
    assert [to_hex(str(entry.get_color())) for entry in figure.legends[0].get_lines()] == expected


def test_the_key_names_each_kind_that_is_shown_once_with_its_colour_and_marker() -> None:
    kinds = [
        Candidate(prefills=0, others=2, connector=None),
        Candidate(prefills=0, others=4, connector=None),
        Candidate(prefills=1, others=1, connector=Connector.P2P),
    ]

    plain, apart = key_of(kinds)

    assert (plain.get_label(), to_hex(str(plain.get_color())), plain.get_marker()) == (
        "plain engines",
        to_hex(colour_of(kinds[0])),
        "o",
    )
    assert (apart.get_label(), to_hex(str(apart.get_color())), apart.get_marker()) == (
        "separate prefill and decode",
        to_hex(colour_of(kinds[2])),
        "^",
    )
