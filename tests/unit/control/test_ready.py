"""Waiting for a deployment as long as it makes progress."""

import pytest

from pd_contracts.http_call import Reply
from pd_contracts.names import Role
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_control.local.processes import engine_state
from pd_control.local.readiness import Patience, progress, until_boards
from pd_control.supervision.supervisor import StartError

EXPECTED = {Role.PREFILL: 1, Role.DECODE: 2}


def stats(*instances: tuple[str, Role, str]) -> ProxyStats:
    return ProxyStats(
        ready=False,
        instances=[
            InstanceStats(name=name, role=role, state=state, reason="loading" if state == "joining" else "")
            for name, role, state in instances
        ],
    )


def test_it_waits_for_the_proxy_first() -> None:
    assert progress(None, EXPECTED).waiting == "the proxy to answer"
    assert not progress(None, EXPECTED).done


def test_it_tells_which_engines_are_awaited_and_why() -> None:
    seen = progress(stats(("prefill-0", Role.PREFILL, "ready"), ("decode-0", Role.DECODE, "joining")), EXPECTED)

    assert seen.waiting == "decode-0 is joining (loading), 1 decode not announced yet"
    assert not seen.done


def test_it_is_done_when_every_engine_is_ready() -> None:
    ready = [
        ("prefill-0", Role.PREFILL, "ready"),
        ("decode-0", Role.DECODE, "ready"),
        ("decode-1", Role.DECODE, "ready"),
    ]

    assert progress(stats(*ready), EXPECTED).done
    assert not progress(stats(*ready[:2]), EXPECTED).done


def test_waiting_goes_on_as_long_as_something_changes() -> None:
    times = iter([0.0, 1.0, 1.0, 10.5, 10.9, 10.9, 20.0, 21.0])
    patience = Patience(10, clock=lambda: next(times))

    looks = [patience.lasts(seen) for seen in ("a", "a", "b", "b", "b")]

    assert looks == [True, True, True, True, False]


def test_the_state_of_an_engine_is_what_the_proxy_says() -> None:
    seen = stats(("decode-0", Role.DECODE, "joining"))

    assert engine_state("decode-0", Role.DECODE, seen, 1) == "joining (loading)"
    assert engine_state("prefill-0", Role.PREFILL, seen, 1) == "not announced"
    assert engine_state("decode-0", Role.DECODE, None, 1) == "unknown (no proxy)"


def test_of_several_engines_each_has_its_own_state() -> None:
    seen = stats(("decode-0", Role.DECODE, "ready"), ("decode-1", Role.DECODE, "lost"))

    states = [engine_state(name, Role.DECODE, seen, 2) for name in ("decode-0", "decode-1")]

    assert states[0].startswith("ready")
    assert states[1].startswith("lost")


def test_while_another_has_its_name_an_engine_shares_a_count() -> None:
    seen = stats(
        ("decode-0", Role.DECODE, "ready"), ("decode-1", Role.DECODE, "lost"), ("decode-2", Role.DECODE, "ready")
    )

    assert engine_state("decode-1", Role.DECODE, seen, 2) == "2 of 2 decode ready"


def test_a_monitor_that_sees_one_board_of_two_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([b"[]", b"[{}]", b"[{}, {}]"])
    asked: list[str] = []

    def gpus(url: str, timeout_s: float) -> Reply:
        asked.append(url)
        return Reply(status=200, headers={}, body=next(answers), elapsed_s=timeout_s)

    monkeypatch.setattr("pd_control.local.readiness.get", gpus)

    until_boards("http://monitor", 2, limit_s=5, poll_s=0)

    assert asked == ["http://monitor/gpus"] * 3


def test_boards_that_never_come_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pd_control.local.readiness.get",
        lambda _, timeout_s: Reply(status=200, headers={}, body=b"[{}]", elapsed_s=timeout_s),
    )

    with pytest.raises(StartError, match="1 of 2 boards"):
        until_boards("http://monitor", 2, limit_s=0, poll_s=0)
