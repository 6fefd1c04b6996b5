# ruff: noqa: INP001  a script
"""P2pConnector's numbers of a profile, from docs/results/h200-p2p: one stream by the order of the two requests, and three loads of each order.

These are no run folders that `pd-plan calibrate` could read. The loads came at the same times as in `benchmarks/connector`, which are drawn here again.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pd_contracts.names import Connector
from pd_planner.des.deployment import Outcome, simulate
from pd_planner.profile.numbers import changed
from pd_planner.traffic.load import Floats, Load
from pd_simulator.profile import HeldOut, Profile
from pd_simulator.steps.engines import Engines, Order

DATA: Final = Path(__file__).parents[2] / "docs" / "results" / "h200-p2p" / "data"
KV_TOKENS: Final = 152_000
# As the data calls the orders of which there are loads.
ORDERS: Final = {Order.AT_ONCE: "decode-first", Order.HAND_OFF: "announced"}
LABELS: Final = {Order.AT_ONCE: "disagg 1P1D P2pConnector", Order.HAND_OFF: "disagg 1P1D P2pConnector hand-off"}
_PART: Final = f"handoff.{Connector.P2P}"
_SECONDS: Final = 16.0
_SEED: Final = 7
_P50, _P99 = 0, 2  # of p50, p90, p99


@dataclass(frozen=True)
class Point:
    """One load of the data: requests per second, and TTFT and TPOT as p50, p90, p99 (ms)."""

    order: Order
    load: Load
    ttft: list[float]
    tpot: list[float]


def with_p2p(profile: Profile) -> Profile:
    """The profile with P2pConnector's numbers, and how far it is off under the loads.

    From one stream: what decode takes after prefill's answer, by order. From the loads: when prefill's token is at the client, because there it
    comes later than with one stream; each load is predicted from the two others.
    """
    profile = _from_one_stream(profile)
    points = _points()
    handed_off = [point for point in points if point.order is Order.HAND_OFF]
    late = [point.ttft[_P50] - _quantiles(_simulated(profile, point).ttft_ms)[_P50] for point in handed_off]
    compared = {Order.AT_ONCE: [(profile, point) for point in points if point.order is Order.AT_ONCE]}
    compared[Order.HAND_OFF] = [
        (_with_first(profile, [*late[:number], *late[number + 1 :]]), point) for number, point in enumerate(handed_off)
    ]
    profile = _with_first(profile, late)
    found = profile.provenance
    if found is None:
        return profile
    held_out = found.held_out | {LABELS[order]: _held_out(pairs) for order, pairs in compared.items()}
    return msgspec.structs.replace(profile, provenance=msgspec.structs.replace(found, held_out=held_out))


def _with_first(profile: Profile, late: list[float]) -> Profile:
    return changed(profile, {f"{_PART}.first_token_ms": max(0.0, float(np.mean(late)))})


def _from_one_stream(profile: Profile) -> Profile:
    """What is above plain, less what the simulation has of it anyway: decode's step, and with a later request the way to it."""
    price: dict[str, Any] = json.loads((DATA / "price.json").read_text(encoding="utf-8"))
    lengths = np.array([int(length) for length in price], np.float64)
    decode = profile.decode
    steps = decode.base_ms + decode.per_sequence_ms + decode.per_context_token_ms * lengths

    def line(order: str, known: Floats) -> tuple[float, float]:
        above = np.array([row[order]["ttft"] - row["plain"]["ttft"] for row in price.values()])
        per_token, base = np.polyfit(lengths, above - known, 1)
        return max(0.0, float(base)), max(0.0, float(per_token))

    after, at_once = line("official", steps + profile.api_ms), line("decode-first", steps)
    return changed(
        profile,
        {
            f"{_PART}.wait_ms": after[0],
            f"{_PART}.wait_per_token_ms": after[1],
            f"{_PART}.at_once_ms": at_once[0],
            f"{_PART}.at_once_per_token_ms": at_once[1],
            f"{_PART}.first_token_ms": 0.0,
        },
    )


def _points() -> list[Point]:
    rows: list[dict[str, Any]] = json.loads((DATA / "load.json").read_text(encoding="utf-8"))
    orders = {name: order for order, name in ORDERS.items()}
    return [
        Point(orders[row["order"]], _load(row), row["TTFT ms"], row["TPOT ms"])
        for row in rows
        if row["order"] in orders
    ]


def _load(row: dict[str, Any]) -> Load:
    prompt, output = map(int, row["shape"].split("/"))
    drawn, at = random.Random(_SEED), [0.0]
    while at[-1] < _SECONDS:
        at.append(at[-1] + drawn.expovariate(2 * row["rate a GPU"]))
    if len(at) - 1 != row["requests"]:
        raise RuntimeError(f"{len(at) - 1} arrivals are drawn, and {row['requests']} were measured")
    return Load.of(np.array(at[1:]) - at[1], prompt, output)


def _simulated(profile: Profile, point: Point) -> Outcome:
    return simulate(profile, Engines(1, 1, Connector.P2P, KV_TOKENS, order=point.order), point.load)


def _quantiles(values: Floats) -> Floats:
    return np.asarray(np.percentile(values, (50, 90, 99)))


def _held_out(pairs: list[tuple[Profile, Point]]) -> HeldOut:
    """Medians of the absolute errors."""
    rows = []
    for profile, point in pairs:
        outcome = _simulated(profile, point)
        off = [
            np.abs(_quantiles(values) / measured - 1)
            for values, measured in ((outcome.ttft_ms, point.ttft), (outcome.tpot_ms, point.tpot))
        ]
        rows.append([off[0][_P50], off[0][_P99], off[1][_P50], off[1][_P99]])
    ttft_p50, ttft_p99, tpot_p50, tpot_p99 = (round(float(value), 4) for value in np.median(rows, axis=0))
    return HeldOut(
        runs=len(pairs),
        prefills=1,
        connector=Connector.P2P,
        ttft_p50=ttft_p50,
        ttft_p99=ttft_p99,
        tpot_p50=tpot_p50,
        tpot_p99=tpot_p99,
    )
