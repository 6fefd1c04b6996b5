"""The table of a sweep: the steps by clock, each compared with the runs without a lock, and the drift between those."""

from collections.abc import Iterable, Sequence
from typing import Final

from pd_contracts.names import Role
from pd_monitor.clocks.sweep import LATENCIES, Point

_TOKEN: Final = {Role.PREFILL: "input token", Role.DECODE: "output token", Role.COMBINED: "output token"}
_VERDICTS: Final = {
    "held": "the clock, or the power, stayed at what was asked for",
    "clamped": "lower than requested: another limit applied",
    "ignored": "the setter did nothing",
    "never reached": "the limit lies above what the board draws, so it changed nothing",
    "not under load": "the board idled all the time",
    "free": "no lock",
}


def page(points: Sequence[Point]) -> str:
    """The whole of sweep.md; `points` is not empty."""
    first = points[0]
    what = "graphics clock locked" if first.actuator == "lock" else "power limited"
    return "\n".join([
        f"{first.role}: {what}, one run per step. `free` is the run without a limit, at the start and at the end; {_drift(points)}",
        "",
        table(points),
        *_legend(points),
        "",
    ])  # fmt: skip


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table, from the highest step to the lowest between the two runs without one."""
    roles = sorted({role for point in points for role in point.joules})
    head = ["step", "clock under load, MHz", "verdict", *map(_latency, LATENCIES)]
    head += [f"J per {_TOKEN[role]}, {role}" for role in roles]
    head += [f"{points[0].role} J against free", "median TPOT against free"]
    steps = sorted(
        (point for point in points if point.requested is not None), key=lambda point: -(point.requested or 0)
    )
    free = [point for point in points if point.requested is None]
    rows = [head, ["---"] * len(head), *(_row(point, roles, points) for point in (*free[:1], *steps, *free[1:]))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _latency(name: str) -> str:
    kind, measure = name.removesuffix("_ms").split("_")
    return f"{kind} {measure.upper()}, ms"


def _row(point: Point, roles: Sequence[Role], points: Sequence[Point]) -> list[str]:
    unit = "MHz" if point.actuator == "lock" else "W"
    step = "free" if point.requested is None else f"{point.role} {point.requested:g} {unit}"
    verdict = point.verdict if point.status == 0 else f"{point.verdict}, but the command ended with {point.status}"
    numbers = [point.latencies_ms.get(name) for name in LATENCIES]
    energies = [point.joules_per_token.get(role) for role in roles]
    against = [
        _change(_joules(point), _mean(map(_joules, _free(points)))),
        _change(_tpot(point), _mean(map(_tpot, _free(points)))),
    ]
    return [step, _shown(point.achieved_mhz), verdict, *map(_shown, numbers), *map(_shown, energies), *against]


def _drift(points: Sequence[Point]) -> str:
    """How far the runs without a lock are from each other."""
    free = _free(points)
    if len(free) < 2:
        return "there is only one of them so far, so the drift is unknown."
    joules, tpot = (_change(measure(free[-1]), measure(free[0])) for measure in (_joules, _tpot))
    known = [f"{text} in {name}" for text, name in ((joules, "J per token"), (tpot, "median TPOT")) if text]
    return f"from the one to the other: {' and '.join(known) or 'unknown'}. Smaller differences mean nothing."


def _legend(points: Sequence[Point]) -> list[str]:
    words = dict.fromkeys(point.verdict for point in points)
    lines = [f"- {word}: {_VERDICTS[word]}." for word in words if word in _VERDICTS]
    if any(point.status for point in points):
        lines.append(
            "- A command with an exit status other than 0 measured nothing reliable (pd-loadgen: 3, it was late itself; 4, all requests failed)."
        )
    if any(point.window == "command" for point in points):
        lines.append(
            "- If the command recorded no window, joules cover the whole command, including start and end of the program."
        )
    return lines


def _free(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.requested is None and point.status == 0]


def _joules(point: Point) -> float | None:
    return point.joules_per_token.get(point.role)


def _tpot(point: Point) -> float | None:
    return point.latencies_ms.get("median_tpot_ms")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _change(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{100 * (value / base - 1):+.1f}%"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
