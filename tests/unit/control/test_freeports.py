"""Ports for a demonstration on a machine where something else runs."""

import random

import pytest

from pd_control.planning.free_ports import FIRST, LAST, choose


def test_free_ports_stay_as_they_are() -> None:
    assert choose({"http_proxy_port": [10001], "prefill_http_port": [20003]}, lambda _port: True) == {}


def test_only_what_is_taken_moves_and_a_base_moves_with_all_its_ports() -> None:
    chosen = choose({"http_proxy_port": [10001], "prefill_kv_port": [21001, 21101]}, lambda port: port != 21101)

    assert list(chosen) == ["prefill_kv_port"]
    assert FIRST <= chosen["prefill_kv_port"] < LAST
    assert chosen["prefill_kv_port"] + 100 != 21101


def test_no_port_is_given_twice() -> None:
    needs = {f"f{number}": [1, 2] for number in range(50)}

    chosen = choose(needs, lambda port: port > 100, random.Random(7))

    ports = [base + offset for base in chosen.values() for offset in (0, 1)]
    assert len(set(ports)) == 100


def test_a_port_that_another_setting_keeps_is_not_given_away() -> None:
    kept = list(range(FIRST, LAST - 1))

    chosen = choose({"kept": kept, "moved": [1]}, lambda port: port != 1)

    assert chosen == {"moved": LAST - 1}


def test_a_machine_without_free_ports_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="no free ports"):
        choose({"http_proxy_port": [10001]}, lambda _port: False)
