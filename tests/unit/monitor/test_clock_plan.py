import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pd_contracts.names import Role
from pd_contracts.records import GpuSample
from pd_contracts.settings import SettingsError, fields, load
from pd_monitor.clocks.journal import Journal
from pd_monitor.clocks.plan import BoardState, ClockError, Step, Wish, make_plan
from pd_monitor.clocks.processes import with_children
from pd_monitor.clocks.readback import joules, judge
from pd_monitor.clocks.settings import ClockSettings
from pd_monitor.clocks.sweep import order

BOARD = BoardState(index=1, uuid="GPU-1", clocks_mhz=(210, 1980), cap_mw=700_000, cap_range_mw=(200_000, 700_000))
LOCK = Wish(lock_mhz=1200)


def refusals(board: BoardState, wish: Wish, ours: tuple[int, ...] = ()) -> tuple[str, ...]:
    return make_plan([board], {1: Role.DECODE}, {Role.DECODE: wish}, ours).refusals


def test_only_boards_of_the_named_roles_are_set() -> None:
    other = BoardState(index=0, uuid="GPU-0")

    plan = make_plan([other, BOARD], {0: Role.PREFILL, 1: Role.DECODE}, {Role.DECODE: LOCK}, ())

    assert [step.board.uuid for step in plan.steps] == ["GPU-1"]
    assert plan.refusals == ()


def test_a_gpu_that_two_roles_share_is_never_set() -> None:
    settings = load(ClockSettings, {"PREFILL_GPUS": "1", "DECODE_GPUS": "1", "DECODE_LOCK_MHZ": "1200"})

    plan = make_plan([BOARD], settings.roles, settings.wishes, ())

    assert plan.steps == ()
    assert plan.refusals == ("no GPU has the role decode",)


def test_a_process_of_ours_may_use_the_board_and_a_strangers_may_not() -> None:
    board = BoardState(index=1, uuid="GPU-1", processes=(41, 42))

    assert refusals(board, LOCK, (41, 42)) == ()
    assert "process 42" in refusals(board, LOCK, (41,))[0]


def test_what_the_board_does_not_tell_forbids_a_cap_but_not_a_lock() -> None:
    silent = BoardState(index=1, uuid="GPU-1")

    assert refusals(silent, LOCK) == ()
    assert "could not be restored" in refusals(silent, Wish(cap_w=300))[0]


@pytest.mark.parametrize("variable", ["DECODE_LOCK_MHZ", "DECODE_CAP_W", "CLOCKS_LEASE_S", "SWEEP_VALUES"])
def test_nonsense_is_refused_with_its_name(variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        load(ClockSettings, {variable: "-1"})


def samples(clock: int | None, power: float, *, idle: bool = False) -> list[GpuSample]:
    reasons = 1 if idle else 0
    return [
        GpuSample(t=t / 10, index=1, sm_clock_mhz=clock, power_average_w=power, throttle_reasons=reasons)
        for t in range(5)
    ]


@pytest.mark.parametrize(
    ("wish", "clock", "power", "cap_w", "word"),
    [
        (LOCK, 1200, 300, None, "held"),
        (LOCK, 1215, 300, None, "held"),
        (LOCK, 1100, 300, None, "clamped"),
        (LOCK, 1980, 300, None, "ignored"),
        (Wish(cap_w=400), 1980, 395, 400.0, "held"),
        (Wish(cap_w=400), 1980, 250, 400.0, "never reached"),
        (Wish(cap_w=400), 1980, 390, 700.0, "ignored"),
        (Wish(cap_w=400), 1980, 600, 400.0, "ignored"),
        (Wish(lock_mhz=1200, cap_w=400), 1200, 390, 400.0, "held, held"),
        (Wish(), 1980, 600, 700.0, "free"),
    ],
)
def test_what_a_board_did_is_judged_by_its_readings(
    wish: Wish, clock: int, power: float, cap_w: float | None, word: str
) -> None:
    assert judge(wish, samples(clock, power), cap_w).word == word


def test_an_idle_board_says_nothing_about_a_lock() -> None:
    assert judge(LOCK, samples(345, 80, idle=True), None).word == "not under load"


def test_energy_between_samples_is_interpolated_and_never_guessed_outside() -> None:
    points = [GpuSample(t=float(t), index=0, energy_mj=t * 200e3) for t in range(4)]

    assert joules(points, 0.5, 2.25) == pytest.approx(350)
    assert joules(points, -0.5, 2) is None
    assert joules(points, 0, 3.5) is None
    assert joules([GpuSample(t=0.0, index=0)], 0, 0) is None


def test_a_sweep_begins_and_ends_without_a_lock_and_its_order_is_the_seeds() -> None:
    values = [900.0, 1200.0, 1500.0, 1800.0, 1200.0]

    first, again, other = order(values, 1), order(values, 1), order(values, 2)

    assert first == again != other
    assert (first[0], first[-1]) == (None, None)
    assert sorted(value for value in first if value) == [900, 1200, 1500, 1800]


def test_the_journal_is_on_the_disk_when_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    really = os.fsync

    def noted(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        really(fd)

    monkeypatch.setattr(os, "fsync", noted)
    journal = Journal(tmp_path)

    journal.write([Step(BOARD, Role.DECODE, Wish(lock_mhz=1200, cap_w=300))])

    assert synced == [str(tmp_path / "clocks.new"), str(tmp_path)]  # the content, then the name
    entry = journal.read()
    assert entry is not None
    assert [(change.uuid, change.locked, change.previous_cap_mw) for change in entry.changes] == [
        ("GPU-1", True, 700_000)
    ]


def test_a_journal_that_cannot_be_read_is_never_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text("{")

    with pytest.raises(ClockError, match="by hand"):
        journal.read()


def test_a_child_of_an_engine_is_the_engines() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        family = with_children([os.getpid()])
        alone = with_children([child.pid])
        child.communicate(b"\n")

    assert {os.getpid(), child.pid} <= family
    assert alone == {child.pid}


def test_the_documentation_names_every_setting() -> None:
    page = (Path(__file__).parents[3] / "docs" / "energy.md").read_text()

    assert {field.variable for field in fields(ClockSettings)} <= set(re.findall(r"`([A-Z_]+)`", page))
