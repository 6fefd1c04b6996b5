"""Which deployments are compared."""

from typing import Any

import pytest

from pd_contracts.names import Connector, Role, Topology
from pd_control.compare.deployments import Spec, default, parse, placed, single
from pd_control.planning.gpus import PlanError
from pd_control.settings import ControlSettings


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("combined,1p1d", ["4c", "1p1d"]),
        ("2c, 1P3D", ["2c", "1p3d"]),
        ("plain", ["4c"]),
        ("1p1d:nixl,1p1d", ["1p1d-nixl", "1p1d"]),
        ("1p1d:ExampleConnector", ["1p1d-example"]),
    ],
)
def test_a_list_is_read(text: str, names: list[str]) -> None:
    assert [spec.name for spec in parse(text, 4)] == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("1p", "not a deployment"),
        ("0p1d", "not a deployment"),
        ("0c", "not a deployment"),
        ("combined:nixl", "not a deployment"),
        ("1p1d:smoke", "unknown connector 'smoke'"),
        ("3p2d", "needs 5 engines, and the GPUs are enough for 4"),
        ("1p1d,1P1D", "twice"),
        ("combined,4c", "twice"),
    ],
)
def test_what_is_none_is_refused_with_its_reason(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse(text, 4)


@pytest.mark.parametrize(
    ("engines", "names"),
    [
        (2, ["2c", "1p1d"]),
        (3, ["3c", "1p2d", "2p1d"]),
        (4, ["4c", "1p3d", "2p2d", "3p1d"]),
        (8, ["8c", "2p6d", "4p4d", "6p2d"]),
    ],
)
def test_without_a_list_it_is_plain_and_every_xpyd_that_fits(engines: int, names: list[str]) -> None:
    found = default(engines)

    assert [spec.name for spec in found] == names
    assert {spec.engines for spec in found} == {engines}


def test_engines_are_placed_on_the_given_gpus_in_order() -> None:
    settings = ControlSettings(tensor_parallel_size=2)

    separate = placed(settings, Spec(prefill=1, decode=2, connector=Connector.NIXL), [7, 6, 5, 4, 3, 2])
    plain = placed(settings, Spec(combined=2), [7, 6, 5, 4, 3, 2])

    assert (separate.prefill_gpus, separate.decode_gpus) == ((7, 6), (5, 4, 3, 2))
    assert separate.kv_connector is Connector.NIXL
    assert plain.combined_gpus == (7, 6, 5, 4)
    assert plain.kv_connector is settings.kv_connector


def test_a_spec_says_what_it_is() -> None:
    spec = Spec(prefill=1, decode=3, connector=Connector.NIXL)

    assert (spec.topology, spec.engines, spec.label) == (Topology.DISAGG, 4, "disagg 1P3D nixl")
    assert spec.counts == {Role.PREFILL: 1, Role.DECODE: 3, Role.COMBINED: None}
    assert single([spec, Spec(combined=1)]) == Spec(combined=1)
    assert single([spec, Spec(combined=2)]) is None


@pytest.mark.parametrize(
    ("settings", "names", "labels"),
    [
        ({}, ["2c", "1p1d"], ["2 combined", "disagg 1P1D"]),
        ({"kv_both": True}, ["2c-both-roles", "1p1d"], ["2 combined both roles", "disagg 1P1D"]),
        (
            {"kv_both": True, "routing": "adaptive"},
            ["2c-adaptive", "1p1d"],
            ["2 combined adaptive", "disagg 1P1D"],
        ),
        (
            {"routing": "local_first"},
            ["2c-local_first-without-kv_both", "1p1d"],
            ["2 combined local_first without KV_BOTH", "disagg 1P1D"],
        ),
    ],
)
def test_combined_engines_that_serve_otherwise_than_plain_ones_have_a_name_and_a_folder_of_their_own(
    settings: dict[str, Any], names: list[str], labels: list[str]
) -> None:
    manner = ControlSettings(**settings).manner

    for found in (default(2, manner), parse("2c,1p1d", 2, manner)):
        assert [spec.name for spec in found] == names
        assert [spec.label for spec in found] == labels
