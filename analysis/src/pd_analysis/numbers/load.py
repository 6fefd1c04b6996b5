"""The offered load: only runs whose loads are equal in every field here are compared.

Seeds and durations are not part of it. Other seeds are repeats of one load; schedules that differ for another reason are a separate doubt.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from pd_analysis.words.formatting import joined, listed, number, setting, sizes, whole
from pd_analysis.words.language import mark, ntr, tr
from pd_contracts.records import Workload


class Pace(StrEnum):
    """What sets the pace of requests. Only an open loop has a given rate; with the others the rate is a result."""

    RATE = "rate"
    IN_FLIGHT = "in_flight"
    AT_ONCE = "at_once"
    BATCHES = "batches"
    PHASES = "phases"


# Loads that differ only in how much they ask for are points of one curve.
SWEPT: Final = (Pace.RATE, Pace.IN_FLIGHT)
REPLAY: Final = "replay"  # the arrival of a trace
# Modes that send requests in groups: percentiles over all of them would mix batches of all sizes, or both parts.
MODES: Final = (Pace.BATCHES, Pace.PHASES)


@dataclass(frozen=True)
class Load:
    """A load, to be compared with `==`.

    Attributes:
        amount: requests per second, requests in flight, or requests at once, by `pace`; 0 for other paces.
        at_most: requests in flight at most, where an open loop was held back.
        batches: sizes of the batches.
        options: everything else, as the manifest has it.
    """

    pace: Pace
    amount: float
    input_tokens: int | None
    output_tokens: int | None
    dataset: str
    arrival: str
    endpoint: str
    burstiness: float | None = None
    at_most: int | None = None
    batches: tuple[int, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @property
    def shape(self) -> "Load":
        """The load whatever its amount: what all points of one curve have in common."""
        return replace(self, amount=0.0) if self.pace in SWEPT else self


def lengths(load: Load) -> tuple[int, int]:
    """Prompt and output tokens, by which shapes are put in order; 0 where they vary."""
    return load.input_tokens or 0, load.output_tokens or 0


def load_of(workload: Workload) -> Load:
    pace = pace_of(workload)
    return Load(
        pace=pace,
        amount=_amount(workload, pace),
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        dataset=workload.dataset,
        arrival=workload.arrival,
        endpoint=workload.endpoint,
        burstiness=workload.burstiness if pace is Pace.RATE else None,
        at_most=workload.max_concurrency if pace is Pace.RATE else None,
        batches=tuple(workload.batch_sizes),
        options=tuple(sorted(workload.options.items())),
    )


def pace_of(workload: Workload) -> Pace:
    if workload.arrival == "phase-split":
        return Pace.PHASES
    if workload.batch_sizes:
        return Pace.BATCHES
    if workload.arrival == "closed":
        return Pace.IN_FLIGHT
    if workload.arrival == "batch" or not math.isfinite(workload.rate):
        return Pace.AT_ONCE
    return Pace.RATE


def _amount(workload: Workload, pace: Pace) -> float:
    amounts: dict[Pace, float] = {
        Pace.RATE: workload.rate,
        Pace.IN_FLIGHT: float(workload.max_concurrency or 0),
        Pace.AT_ONCE: float(workload.requests),
    }
    return amounts.get(pace, 0.0)


def amount_words(workload: Workload) -> str:
    """How much was asked for, with its unit: 20 req/s, 32 in flight."""
    pace = pace_of(workload)
    amount = _amount(workload, pace)
    if pace is Pace.RATE:
        # the rate of a trace is a quotient, which nobody chose
        return tr("{rate} req/s", rate=number(amount) if workload.arrival == REPLAY else setting(amount))
    if pace is Pace.IN_FLIGHT:
        return tr("{count} in flight", count=setting(amount))
    if pace is Pace.AT_ONCE:
        return tr("{count} at once", count=setting(amount))
    if pace is Pace.BATCHES:
        return tr("batches of {sizes}", sizes=listed(map(setting, dict.fromkeys(workload.batch_sizes))))
    return tr("one at a time")


_ASKED: Final = {
    Pace.IN_FLIGHT: mark("{count} in flight, requests of {sizes} tokens ({details})"),
    Pace.AT_ONCE: mark("{count} requests at once, of {sizes} tokens ({details})"),
    Pace.BATCHES: mark("mode batch: {count} requests at once, of {sizes} tokens ({details})"),
    Pace.PHASES: mark("mode phase-split: one request at a time, of {sizes} tokens ({details})"),
}
_SHAPED: Final = {
    Pace.RATE: mark("requests of {sizes} tokens ({details})"),
    Pace.IN_FLIGHT: mark("a closed loop of requests of {sizes} tokens ({details})"),
}


def words(workload: Workload, *, with_amount: bool = True) -> str:
    """What was offered, in words; without its amount, what all points of a curve were offered."""
    load = load_of(workload)
    details = [*_details(load), *filter(None, [spread(workload)] if with_amount else [])]
    holes: dict[str, object] = {"sizes": sizes(workload), "details": joined(details)}
    if not with_amount and load.pace in SWEPT:
        return tr(_SHAPED[load.pace], **holes)
    if load.arrival == REPLAY:
        return _of_trace(workload, load)
    if load.pace is Pace.RATE:
        return ntr(
            "{rate} request/s of {sizes} tokens ({details})",
            "{rate} requests/s of {sizes} tokens ({details})",
            1 if load.amount == 1 else 2,
            rate=setting(load.amount),
            **holes,
        )
    count = listed(map(setting, dict.fromkeys(load.batches))) if load.batches else setting(load.amount)
    return tr(_ASKED[load.pace], count=count, **holes)


def _of_trace(workload: Workload, load: Load) -> str:
    """What a trace asked for: it has times and lengths of its own, and no rate that somebody chose."""
    asked = ntr(
        "{count} request in {seconds} s",
        "{count} requests in {seconds} s",
        workload.requests,
        seconds=setting(round(workload.duration_s, 1)),
    )
    return tr(
        "trace {name}: {asked} ({details})",
        name=dict(load.options).get("trace", ""),
        asked=joined(filter(None, (asked, spread(workload)))),
        details=joined(_details(replace(load, options=tuple(one for one in load.options if one[0] != "trace")))),
    )


def spread(workload: Workload) -> str:
    """Medians and p95 of lengths that vary; empty where they are all alike or unknown."""
    both = zip(_SPREADS, (workload.input_spread, workload.output_spread), strict=True)
    return joined(tr(message, median=whole(found[0]), high=whole(found[-1])) for message, found in both if found)


_SPREADS: Final = (
    mark("median prompt {median} tokens (p95 {high})"),
    mark("median answer {median} tokens (p95 {high})"),
)


def _details(load: Load) -> list[str]:
    found = [tr("{dataset} data", dataset=load.dataset)]
    if load.pace is Pace.RATE and load.arrival != REPLAY:
        found.append(tr("{arrival} arrivals", arrival=load.arrival))
    if load.burstiness not in (None, 1.0):
        found.append(tr("burstiness {value}", value=setting(load.burstiness)))
    found.append(load.endpoint)
    if load.at_most is not None:
        found.append(tr("at most {count} in flight", count=load.at_most))
    return [*found, *(f"{name} {value}" for name, value in load.options)]
