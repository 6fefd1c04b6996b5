"""When a loop may judge engines by their silence."""

import asyncio
import time

from pd_proxy.background.pace import Pace

INTERVAL_S = 0.02


async def on_time_after_a_standstill(pace: Pace) -> bool:
    judging = asyncio.create_task(pace.on_time())
    await asyncio.sleep(0)
    time.sleep(4 * INTERVAL_S)  # noqa: ASYNC251  the standstill
    return await judging


async def test_a_late_round_judges_no_engine() -> None:
    assert not await on_time_after_a_standstill(Pace(INTERVAL_S))


async def test_a_process_that_is_always_late_judges_every_second_time() -> None:
    pace = Pace(INTERVAL_S)
    assert [await on_time_after_a_standstill(pace) for _ in range(4)] == [False, True, False, True]


async def test_a_round_that_comes_in_time_judges() -> None:
    pace = Pace(1.0)  # a round may be late by one interval, which a busy machine needs
    assert await pace.on_time()
