"""Waiting for a task that outlives its waiter."""

import asyncio

import pytest

from pd_proxy.tasks import result_of, tell


async def after(seconds: float, value: str) -> str:
    await asyncio.sleep(seconds)
    return value


async def fail() -> str:
    await asyncio.sleep(0)
    raise ValueError("no")


async def test_its_result_and_its_error_are_passed_on() -> None:
    assert await result_of(asyncio.create_task(after(0, "done")), 5) == "done"
    with pytest.raises(ValueError, match="no"):
        await result_of(asyncio.create_task(fail()))


async def test_a_task_that_has_ended_before_needs_no_wait() -> None:
    task = asyncio.create_task(after(0, "done"))
    await asyncio.wait([task])

    assert await result_of(task, 0) == "done"


async def test_it_goes_on_after_the_time_is_over() -> None:
    task = asyncio.create_task(after(0.05, "done"))
    with pytest.raises(TimeoutError):
        await result_of(task, 0.001)

    assert await task == "done"


async def test_it_goes_on_if_its_waiter_is_cancelled() -> None:
    task = asyncio.create_task(after(0.01, "done"))
    waiter = asyncio.create_task(result_of(task, 5))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter

    assert await task == "done"


async def test_a_task_that_is_cancelled_ends_the_wait() -> None:
    task = asyncio.create_task(asyncio.sleep(5))
    waiter = asyncio.create_task(result_of(task))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_a_limit_for_a_part_of_it_does_not_end_the_wait_for_the_rest() -> None:
    parts: list[str] = []

    async def two() -> str:
        parts.append(await after(0, "first"))
        return await after(0.02, "second")

    assert await result_of(asyncio.create_task(two()), 0.001, in_time=lambda: bool(parts)) == "second"


async def test_a_limit_for_a_part_of_it_holds_until_that_has_ended() -> None:
    task = asyncio.create_task(after(0.05, "done"))
    with pytest.raises(TimeoutError):
        await result_of(task, 0.001, in_time=lambda: False)

    assert await task == "done"


async def turns_until_woken(*, told: bool) -> int:
    """How many turns of the event loop pass from the last step of a task to the next one of what waits for it."""
    loop = asyncio.get_running_loop()
    over = loop.create_future() if told else None
    turns, ended_at, woken = 0, 0, False

    def count() -> None:
        nonlocal turns
        turns += 1
        if not woken:
            loop.call_soon(count)

    async def work() -> None:
        nonlocal ended_at
        await asyncio.sleep(0)
        ended_at = turns
        if over is not None:
            tell(over)

    loop.call_soon(count)
    await result_of(asyncio.create_task(work()), over=over)
    woken = True
    return turns - ended_at


async def test_a_task_that_tells_its_end_wakes_its_waiter_a_turn_earlier() -> None:
    assert await turns_until_woken(told=True) == await turns_until_woken(told=False) - 1


async def test_a_task_that_is_cancelled_before_it_could_tell_its_end_ends_the_wait() -> None:
    task = asyncio.create_task(after(5, "done"))
    waiter = asyncio.create_task(result_of(task, over=asyncio.get_running_loop().create_future()))
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiter
