import pytest

from pd_monitor.backends.waves import SquareWave, WaveBoards


def numeric_joules(wave: SquareWave, begun: float, ended: float, steps: int = 40_000) -> float:
    """The integral by the midpoint rule, which knows nothing of the closed form."""
    step = (ended - begun) / steps
    return sum(wave.power_w(begun + (i + 0.5) * step) for i in range(steps)) * step


@pytest.mark.parametrize(("begun", "ended"), [(0.0, 2.0), (0.3, 0.9), (0.9, 1.1), (5.25, 11.8), (-1.0, 3.3)])
@pytest.mark.parametrize("phase", [0.0, 0.7])
def test_the_counter_is_the_integral_of_the_power(begun: float, ended: float, phase: float) -> None:
    wave = SquareWave(idle_w=100, busy_w=500, period_s=2, phase_s=phase)

    counted = wave.energy_j(ended) - wave.energy_j(begun)

    assert counted == pytest.approx(numeric_joules(wave, begun, ended), abs=0.2)


def test_the_average_lags_behind_the_power_as_a_real_boards_does() -> None:
    wave = SquareWave(idle_w=100, busy_w=500, period_s=4)

    assert wave.power_w(2.1) == 100
    assert wave.average_w(2.1) == pytest.approx(0.9 * 500 + 0.1 * 100)


async def test_boards_can_be_told_apart_and_say_that_they_are_simulated() -> None:
    now = 50.0
    boards = WaveBoards([2, 5], clock=lambda: now)

    now = 50.75
    reading = await boards.sample()

    assert [info.index for info in reading.gpus] == [2, 5]
    assert all("SIMULATED" in info.name for info in reading.gpus)
    assert [sample.power_w for sample in reading.samples] == [625.0, 78.0]
    assert all(sample.energy_mj is not None and sample.energy_mj >= 0 for sample in reading.samples)
