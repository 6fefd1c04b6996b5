import math

from hypothesis import given
from hypothesis import strategies as st

from pd_monitor.schedule import Schedule

starts = st.floats(0, 1e6)
intervals = st.floats(0.02, 60)


def test_ticks_lie_on_the_grid_of_the_start_however_late_each_one_is() -> None:
    schedule = Schedule(100.0, 0.1)
    deadlines = []
    for _ in range(5):
        schedule, missed = schedule.after(schedule.deadline + 0.03)
        deadlines.append(round(schedule.deadline, 6))
        assert missed == 0

    assert deadlines == [100.1, 100.2, 100.3, 100.4, 100.5]


def test_a_long_call_skips_the_ticks_it_ran_over_and_counts_them() -> None:
    schedule, missed = Schedule(100.0, 0.1).after(100.35)

    assert missed == 3
    assert round(schedule.deadline, 6) == 100.4


@given(starts, intervals, st.integers(0, 10_000), st.floats(0, 1000))
def test_the_next_tick_is_the_first_of_the_grid_ahead_of_now(
    start: float, interval: float, number: int, late: float
) -> None:
    schedule = Schedule(start, interval, number)
    now = schedule.deadline + late

    following, missed = schedule.after(now)

    tiny = 1e-6
    assert following.deadline > now - tiny
    assert following.deadline <= now + interval + tiny
    assert following.number == number + 1 + missed
    assert missed in {math.floor(late / interval), round(late / interval), math.floor(late / interval) - 1}


@given(starts, intervals, st.integers(0, 100))
def test_a_tick_that_comes_early_is_followed_by_the_one_after_it(start: float, interval: float, number: int) -> None:
    schedule = Schedule(start, interval, number)

    following, missed = schedule.after(schedule.deadline - interval / 4)

    assert (following.number, missed) == (number + 1, 0)
