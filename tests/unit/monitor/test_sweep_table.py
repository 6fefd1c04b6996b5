"""The page of a sweep."""

from pd_contracts.names import Role
from pd_monitor.clocks.sweep import Point
from pd_monitor.clocks.sweep_table import page


def point(requested: float | None, joules: float | None, tpot: float | None, **changes: object) -> Point:
    fields: dict[str, object] = {
        "role": Role.DECODE,
        "actuator": "lock",
        "requested": requested,
        "verdict": "free" if requested is None else "held",
        "achieved_mhz": requested or 1980,
        "peak_w": 500.0,
        "status": 0,
        "folder": "x",
        "window": "run",
        "latencies_ms": {"median_tpot_ms": tpot},
        "joules": {Role.PREFILL: 10.0, Role.DECODE: 10.0},
        "joules_per_token": {Role.PREFILL: 0.1, Role.DECODE: joules},
    }
    return Point(**fields | changes)  # type: ignore[arg-type]


def cells(text: str) -> dict[str, dict[str, str]]:
    lines = [line[1:-1] for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {f"{number} {row[0]}": dict(zip(head, row, strict=True)) for number, row in enumerate(rows)}


def test_steps_are_in_the_order_of_the_clock_between_the_runs_without_a_lock() -> None:
    text = page([point(None, 2.0, 10.0), point(900, 1.0, 14.0), point(1500, 1.5, 11.0), point(None, 2.2, 10.2)])

    found = cells(text)
    assert list(found) == ["0 free", "1 decode 1500 MHz", "2 decode 900 MHz", "3 free"]
    # against the mean of both runs without a lock: 2.1 J and 10.1 ms
    assert found["2 decode 900 MHz"]["decode J against free"] == "-52.4%"
    assert found["2 decode 900 MHz"]["median TPOT against free"] == "+38.6%"
    assert found["2 decode 900 MHz"]["J per output token, decode"] == "1"
    assert found["2 decode 900 MHz"]["J per input token, prefill"] == "0.1"
    assert "from the one to the other: +10.0% in J per token and +2.0% in median TPOT" in text
    assert "- held: the clock, or the power, stayed" in text


def test_before_the_end_nothing_says_how_far_runs_drift() -> None:
    text = page([point(None, 2.0, 10.0), point(900, 1.0, 14.0)])

    assert "only one of them so far" in text
    assert cells(text)["1 decode 900 MHz"]["decode J against free"] == "-50.0%"


def test_a_failed_run_is_no_baseline_and_what_is_unknown_is_empty() -> None:
    text = page([point(None, 9.0, 90.0, status=3), point(900, None, None), point(None, 2.0, 10.0)])

    found = cells(text)
    assert found["0 free"]["verdict"] == "free, but the command ended with 3"
    assert found["1 decode 900 MHz"]["decode J against free"] == ""
    assert found["2 free"]["decode J against free"] == "+0.0%"
    assert "measured nothing reliable" in text
