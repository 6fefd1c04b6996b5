"""`pd-monitor clocks plan|apply|restore|sweep`; nothing is changed unless ALLOW_CLOCK_CONTROL is on."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from pd_contracts import log
from pd_contracts.names import Role
from pd_contracts.records import write_json
from pd_contracts.settings import from_command_line
from pd_monitor.clocks.control import Control
from pd_monitor.clocks.guard import restore
from pd_monitor.clocks.hold import Hold, holding
from pd_monitor.clocks.journal import Journal
from pd_monitor.clocks.plan import ClockError, Plan, Wish, describe, make_plan
from pd_monitor.clocks.processes import with_children
from pd_monitor.clocks.readback import judge
from pd_monitor.clocks.settings import ClockSettings
from pd_monitor.clocks.sweep import Bench, Point, sweep, wish_of
from pd_monitor.clocks.sweep_table import page

USAGE: Final = """usage: pd-monitor clocks plan|apply|restore|sweep [options] [-- command of the sweep with {out}]

plan      shows what apply would change, or why it must not
apply     changes clocks and power limits, and restores them at its end
restore   undoes what a killed process left changed
sweep     runs a command at each step and writes a table

Nothing is changed unless ALLOW_CLOCK_CONTROL is on. `pd-monitor clocks plan --help` lists the options.
"""


class Stop:
    """Set by the first signal."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._set)

    def _set(self, *_: object) -> None:
        self.wanted = True


def main(arguments: Sequence[str]) -> int:
    """Run one verb; 0, or what a `ClockError` says: 2 refused, 3 held by another, 4 no permission, 5 lease lost."""
    verbs = {"plan": _plan, "apply": _apply, "restore": _restore, "sweep": _sweep}
    if not arguments or arguments[0] not in verbs:
        asked = bool(arguments) and arguments[0] in {"-h", "--help"}
        print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    verb, rest = arguments[0], list(arguments[1:])
    options, command = (rest[: rest.index("--")], rest[rest.index("--") + 1 :]) if "--" in rest else (rest, [])
    settings = from_command_line(ClockSettings, f"pd-monitor clocks {verb}", USAGE.splitlines()[0], options)
    log.set_up(settings.log_level)
    try:
        return verbs[verb](settings, command)
    except ClockError as error:
        print(f"pd-monitor clocks: {error}", file=sys.stderr)
        return error.status


def restore_at_start(settings: ClockSettings) -> list[str]:
    """Undo what a killed process left changed; nothing while another process holds it.

    Raises:
        ClockError: if something was left changed and cannot be restored.
    """
    journal = Journal(settings.state_dir)
    if journal.read() is None:
        return []
    _allowed(settings)
    journal.hold()
    try:
        with Control() as control:
            return restore(control, journal)
    finally:
        journal.release()


def _allowed(settings: ClockSettings) -> None:
    if not settings.allow_clock_control:
        msg = "changing clocks is off; ALLOW_CLOCK_CONTROL=on allows it"
        raise ClockError(msg)


def _planned(control: Control, settings: ClockSettings) -> Plan:
    return make_plan(control.states(), settings.roles, settings.wishes, with_children(settings.clocks_allow_pids))


def _refuse(refusals: Sequence[str]) -> None:
    if refusals:
        raise ClockError("; ".join(refusals))


def _plan(settings: ClockSettings, _: Sequence[str]) -> int:
    if settings.allow_clock_control:
        _say_restored(restore_at_start(settings))
    with Control() as control:
        plan = _planned(control, settings)
    for step in plan.steps:
        print(describe(step))
    for refusal in plan.refusals:
        print(f"refused: {refusal}")
    if not settings.allow_clock_control:
        print("nothing would be changed: ALLOW_CLOCK_CONTROL is off")
    return 2 if plan.refusals else 0


def _apply(settings: ClockSettings, _: Sequence[str]) -> int:
    _allowed(settings)
    stop, journal = Stop(), Journal(settings.state_dir)
    with Control() as control, holding(control, journal, settings.clocks_lease_s) as hold:
        plan = _planned(control, settings)
        _refuse(plan.refusals)
        hold.apply(plan.steps)
        for step in plan.steps:
            print(describe(step), flush=True)
        _hold(hold, plan, settings, lambda: stop.wanted)
    print("everything is restored", flush=True)
    return 0


def _hold(hold: Hold, plan: Plan, settings: ClockSettings, stopped: Callable[[], bool]) -> None:
    ends = time.monotonic() + settings.clocks_hold_s if settings.clocks_hold_s else float("inf")
    boards = [step.board.uuid for step in plan.steps]
    judged_at = time.monotonic()
    while not stopped() and time.monotonic() < ends:
        judged_at += settings.sweep_settle_s + 1
        pause = min(judged_at, ends)
        samples = hold.watch(boards, lambda: stopped() or time.monotonic() >= pause)  # noqa: B023 - used in this round
        for step in plan.steps:
            verdict = judge(step.wish, samples[step.board.uuid], hold.control.cap_w(step.board.uuid))
            clock = "unknown" if verdict.achieved_mhz is None else f"{verdict.achieved_mhz:g} MHz"
            print(f"GPU {step.board.index}: {verdict.word}, clock under load {clock}", flush=True)


def _restore(settings: ClockSettings, _: Sequence[str]) -> int:
    restored = restore_at_start(settings)
    _say_restored(restored)
    if not restored:
        print("there is nothing to restore")
    return 0


def _say_restored(uuids: Sequence[str]) -> None:
    for uuid in uuids:
        print(f"restored after a process that was killed: {uuid}", flush=True)


def _sweep(settings: ClockSettings, command: Sequence[str]) -> int:
    _allowed(settings)
    if not command or not settings.sweep_values:
        msg = "sweep needs SWEEP_VALUES and, after --, a command with {out} for the run's folder"
        raise ClockError(msg)
    stop, journal, out = Stop(), Journal(settings.state_dir), Path(settings.sweep_out)
    with Control() as control, holding(control, journal, settings.clocks_lease_s) as hold:
        states = control.states()
        for value in settings.sweep_values:
            wishes: dict[Role, Wish] = {settings.sweep_role: wish_of(settings.sweep_actuator, value)}
            _refuse(make_plan(states, settings.roles, wishes, with_children(settings.clocks_allow_pids)).refusals)
        boards = [(state, settings.roles[state.index]) for state in states if state.index in settings.roles]
        points = sweep(Bench(hold, boards, settings, command, lambda: stop.wanted), lambda points: _write(out, points))
    print(page(points), end="")
    return 0 if all(point.status == 0 for point in points) else 1


def _write(out: Path, points: list[Point]) -> None:
    write_json(out / "sweep.json", msgspec.to_builtins(points))
    (out / "sweep.md").write_text(page(points))
