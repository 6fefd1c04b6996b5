# ruff: noqa: INP001, T201 - scripts, not a package
"""The same arrivals on two GPUs: plain vLLM on both engines in turn, and one prefill and one decode.

Open loop: requests are sent when a Poisson process says so, whatever became of the ones before. All orders get the same arrivals and prompts.
"""

import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
from engines import Pair
from price import Client, Run

WARM_UP = 6


def percentiles(values: list[float]) -> list[float]:
    """p50, p90 and p99."""
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return [round(cuts[at - 1], 2) for at in (50, 90, 99)]


async def point(
    pair: Pair, order: str, *, shape: tuple[int, int], rate: float, seconds: float, vocabulary: int
) -> dict[str, Any]:
    """One order at one rate (requests per second on both GPUs together)."""
    length, tokens = shape
    arrivals, clock, drawn = [], 0.0, random.Random(7)
    while clock < seconds:
        clock += drawn.expovariate(rate)
        arrivals.append(clock)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        client = Client(pair, session, vocabulary, tokens, spread=order == "plain")
        await asyncio.gather(*(client.one(order, length) for _ in range(WARM_UP)))
        began, late, tasks = time.monotonic(), 0.0, []
        for at in arrivals:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            late = max(late, time.monotonic() - began - at)
            tasks.append(asyncio.create_task(client.one(order, length)))
        found = await asyncio.gather(*tasks, return_exceptions=True)
    runs = [run for run in found if isinstance(run, Run)]
    whole = [run for run in runs if len(run.stamps) > 2]
    gaps = [max(b - a for a, b in zip(run.stamps, run.stamps[1:], strict=False)) for run in whole]
    return {
        "order": order,
        "shape": f"{length}/{tokens}",
        "rate a GPU": rate / 2,
        "requests": len(found),
        "failed": len(found) - len(runs),
        "TTFT ms": percentiles([run.ttft * 1000 for run in whole]),
        "TPOT ms": percentiles([(run.stamps[-1] - run.stamps[0]) / (len(run.stamps) - 1) * 1000 for run in whole]),
        "longest gap ms": percentiles([gap * 1000 for gap in gaps]),
        "client late ms": round(late * 1000, 1),
    }


def run(
    pair: Pair,
    orders: list[str],
    *,
    shapes: list[tuple[int, int]],
    rates: list[float],
    seconds: float,
    vocabulary: int,
    out: Path | None,
) -> None:
    """All points; each is printed and kept when it is measured."""
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        for rate in rates:
            for order in orders:
                rows.append(
                    asyncio.run(point(pair, order, shape=shape, rate=2 * rate, seconds=seconds, vocabulary=vocabulary))
                )
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
                if out is not None:
                    out.write_text(json.dumps(rows, indent=1))
