"""A workload at every step of a lock or a cap, and the table of latency against joules.

The first point has no lock and is repeated at the end: a difference between the two is drift, not an effect of the clocks. The steps in
between come in an order that a seed gives.
"""

import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pd_contracts.names import Role
from pd_contracts.records import MANIFEST, SUMMARY, GpuSample, Manifest, RecordError, read_json
from pd_monitor.clocks.hold import Hold
from pd_monitor.clocks.plan import BoardState, ClockError, Step, Wish
from pd_monitor.clocks.readback import joules, judge
from pd_monitor.clocks.settings import ClockSettings

LATENCIES = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "p99_itl_ms")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `joules` and `joules_per_token` are by role: prefill per input token, decode and combined per output token."""

    role: Role
    actuator: str
    requested: float | None
    verdict: str
    achieved_mhz: float | None
    peak_w: float | None
    status: int
    folder: str
    window: str
    latencies_ms: dict[str, float | None]
    joules: dict[Role, float | None]
    joules_per_token: dict[Role, float | None]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a sweep needs: the hold, the boards by role, and the command with `{out}` where the run's folder goes."""

    hold: Hold
    boards: Sequence[tuple[BoardState, Role]]
    settings: ClockSettings
    command: Sequence[str]
    stopped: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the command: exit status, folder, and the boards' samples by UUID meanwhile."""

    status: int
    folder: Path
    samples: Mapping[str, list[GpuSample]]


def order(values: Sequence[float], seed: int) -> list[float | None]:
    """The steps in their order; None is without lock or cap."""
    middle: list[float | None] = list(dict.fromkeys(values))
    random.Random(seed).shuffle(middle)
    return [None, *middle, None]


def wish_of(actuator: str, value: float | None) -> Wish:
    if value is None:
        return Wish()
    return Wish(lock_mhz=round(value)) if actuator == "lock" else Wish(cap_w=value)


def sweep(bench: Bench, report: Callable[[list[Point]], None]) -> list[Point]:
    """Run every step; `report` has all points so far after each.

    Raises:
        ClockError: if it was stopped, or a board refused.
    """
    points: list[Point] = []
    for number, value in enumerate(order(bench.settings.sweep_values, bench.settings.sweep_seed)):
        points.append(_point(bench, number, value))
        report(points)
    return points


def _point(bench: Bench, number: int, value: float | None) -> Point:
    settings = bench.settings
    wish = wish_of(settings.sweep_actuator, value)
    steps = [Step(board, role, wish) for board, role in bench.boards if role is settings.sweep_role]
    bench.hold.apply(steps if value is not None else [])
    name = "free" if value is None else f"{settings.sweep_actuator}-{value:g}"
    folder = Path(settings.sweep_out) / f"{number:02d}-{settings.sweep_role}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    settled = time.monotonic() + settings.sweep_settle_s
    bench.hold.watch([], lambda: bench.stopped() or time.monotonic() >= settled)
    return _measured(bench, wish, value, _run(bench, folder))


def _run(bench: Bench, folder: Path) -> Ran:
    command = [part.replace("{out}", str(folder)) for part in bench.command]
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        msg = f"{command[0]}: {error.strerror}"
        raise ClockError(msg) from error
    try:
        samples = bench.hold.watch(
            [board.uuid for board, _ in bench.boards], lambda: bench.stopped() or process.poll() is not None
        )
    finally:
        if process.poll() is None:
            process.terminate()
        status = process.wait()
    if bench.stopped():
        msg = "stopped"
        raise ClockError(msg, 130)
    return Ran(status, folder, samples)


def _measured(bench: Bench, wish: Wish, value: float | None, ran: Ran) -> Point:
    settings = bench.settings
    window, source = _window(ran.folder, ran.samples)
    spent: dict[Role, float | None] = {}
    verdicts = []
    for board, role in bench.boards:
        one = joules(ran.samples[board.uuid], *window)
        before = spent.get(role, 0.0)
        spent[role] = None if one is None or before is None else before + one
        if role is settings.sweep_role:
            inside = [sample for sample in ran.samples[board.uuid] if window[0] <= sample.t <= window[1]]
            verdicts.append(judge(wish, inside, bench.hold.control.cap_w(board.uuid)))
    summary = _summary(ran.folder)
    worst = next((verdict for verdict in verdicts if verdict.word != "held"), verdicts[0])
    return Point(
        role=settings.sweep_role,
        actuator=settings.sweep_actuator,
        requested=value,
        verdict=worst.word,
        achieved_mhz=worst.achieved_mhz,
        peak_w=worst.peak_w,
        status=ran.status,
        folder=ran.folder.name,
        window=source,
        latencies_ms={name: summary.get(name) for name in LATENCIES},
        joules=spent,
        joules_per_token={role: _per_token(role, one, summary) for role, one in spent.items()},
    )


def _window(folder: Path, samples: Mapping[str, list[GpuSample]]) -> tuple[tuple[float, float], str]:
    """The run's own measured window, where it wrote one on this host's clock; else the whole of the command."""
    whole = (
        max((one[0].t for one in samples.values()), default=0.0),
        min((one[-1].t for one in samples.values()), default=0.0),
    )
    try:
        window = read_json(folder / MANIFEST, Manifest).window
    except RecordError:
        return whole, "command"  # the workload is not pd-loadgen's, or it failed
    if window and whole[0] <= window[0] <= window[1] <= whole[1]:
        return window, "run"
    return whole, "command"


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode((folder / SUMMARY).read_bytes()))
    except (OSError, ValueError):
        return {}  # a run that failed has none, and its status says so


def _per_token(role: Role, spent: float | None, summary: Mapping[str, Any]) -> float | None:
    tokens = summary.get("total_input_tokens" if role is Role.PREFILL else "total_output_tokens")
    return spent / tokens if spent is not None and tokens else None
