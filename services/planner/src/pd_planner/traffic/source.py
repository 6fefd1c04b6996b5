"""Traffic: a load whose rate can be changed, from the load generator's own schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from pd_analysis.words.language import Sentence, ntr, tr
from pd_contracts.sentences import Clause
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.outline import Outlined, outline
from pd_planner.traffic.load import Load

MOST: Final = 10_000  # requests of a trace
FEWEST: Final = 400  # requests in a simulated load, if there are as many
LEAST: Final = 20  # requests of a load: of fewer, one that is late more or less decides whether nine of ten are in time
Shared = tuple[tuple[str, int], ...]


class TrafficError(ValueError):
    """No load can be made; the message says why."""


@dataclass(frozen=True)
class Traffic:
    """The traffic of a question.

    Attributes:
        load: the requests at the pace that they have by themselves, `rate` a second.
        shared: what each prompt begins with, where the load says so; empty otherwise.
        wanted: requests per second that are to be served; None if that is open.
        recorded: the times are those of a trace, and not drawn.
        options: the load generator's, as texts by field name, but for rate and duration.
        notes: what of a file is not among the requests.
    """

    load: Load
    rate: float
    wanted: float | None
    recorded: bool
    name: str
    shared: Sequence[Shared] = ()
    options: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str | Clause | Sentence] = ()

    def at(self, rate: float, seconds: float) -> Load:
        """The same at another rate, exactly that one: of drawn requests those of so many seconds, or a few hundred if that is more; of a trace all.

        A part of a trace says little about the rest, whose rate and lengths may be others.
        """
        if self.recorded:
            return replace(self.load, at=self.load.at * (self.rate / rate))
        part = self.load.first(min(len(self.load), max(FEWEST, int(rate * seconds))))
        own = (len(part) - 1) / float(part.at[-1]) if part.at[-1] > 0 else self.rate
        return replace(part, at=part.at * (own / rate))

    def redrawn(self, generator: np.random.Generator) -> "Traffic":
        """The same kind of traffic with other arrivals: its gaps and lengths in another order; a trace stays as it is."""
        if self.recorded:
            return self
        count = len(self.load)
        gaps = np.diff(self.load.at, prepend=0.0)[generator.integers(0, count, count)]
        times = np.cumsum(gaps) * (self.load.at[-1] / max(float(gaps.sum()), 1e-9))
        order = np.arange(count) if len(self.shared) else generator.permutation(count)
        own = self.load
        return replace(self, load=Load(times, own.prompt[order], own.output[order], own.cached[order]))


def traffic_of(
    options: Options,
    given: dict[str, str],
    longest: int,
    *,
    wanted: float | None,
    recorded: bool,
    name: str,
) -> Traffic:
    """The traffic of the load generator's options, without requests of more than `longest` tokens, prompt and answer together.

    Raises:
        TrafficError: if they make too few requests, or all of them at once, or all too long.
        PlanError: the load generator's, if they make no load.
    """
    outlined = outline(options)
    found, too_long = _served(outlined.requests, longest)
    notes: list[str | Clause | Sentence] = [*outlined.notes, *too_long]
    if recorded and len(found) > MOST:
        notes.append(
            Sentence(
                "Of {count} requests of the trace the {most} in a row that came fastest stand for all",
                count=f"{len(found):,}",
                most=f"{MOST:,}",
            )
        )
        found = _busiest(found)
    span = found[-1].offset - found[0].offset
    if len(found) < LEAST:
        raise TrafficError(
            ntr(
                "{name} has {count} request: too few to plan by, {least} are needed, and a thousand are better",
                "{name} has {count} requests: too few to plan by, {least} are needed, and a thousand are better",
                len(found),
                name=name,
                least=LEAST,
            )
        )
    if span <= 0:
        raise TrafficError(
            tr(
                "{name} has {count} requests at one moment: a plan needs requests with different arrival times",
                name=name,
                count=len(found),
            )
        )
    start = found[0].offset
    load = Load.of(
        [one.offset - start for one in found],
        [one.input_tokens for one in found],
        [one.output_tokens for one in found],
    )
    return Traffic(
        load=load,
        rate=(len(found) - 1) / span,
        wanted=wanted,
        recorded=recorded,
        name=name,
        shared=_shared(found),
        options=given,
        notes=notes,
    )


def _served(offered: Sequence[Outlined], longest: int) -> tuple[Sequence[Outlined], list[Sentence]]:
    """The requests that vLLM does not refuse, and a sentence on the others.

    Raises:
        TrafficError: if it refuses all.
    """
    sizes = [one.input_tokens + one.output_tokens for one in offered]
    served = [one for one, size in zip(offered, sizes, strict=True) if size <= longest]
    if len(served) == len(offered):
        return offered, []
    if not served:
        raise TrafficError(
            tr(
                "every request has more than {most} tokens, prompt and answer together ({least} at least): an engine takes no more, and vLLM refuses them",
                most=f"{longest:,}",
                least=f"{min(sizes):,}",
            )
        )
    return served, [
        Sentence(
            "{count} of {all} requests have more than {most} tokens, prompt and answer together (up to {largest}): vLLM refuses them at once, and they are "
            "left out; the rate is that of the others",
            count=f"{len(offered) - len(served):,}",
            all=f"{len(offered):,}",
            most=f"{longest:,}",
            largest=f"{max(sizes):,}",
        )
    ]


def _busiest(found: Sequence[Outlined]) -> Sequence[Outlined]:
    """The stretch of requests that came fastest, as many as are simulated: a deployment that serves them serves the rest."""
    offsets = np.array([one.offset for one in found])
    begin = int(np.argmin(offsets[MOST - 1 :] - offsets[: len(offsets) - MOST + 1]))
    return found[begin : begin + MOST]


def _shared(found: Sequence[Outlined]) -> list[Shared]:
    """Nothing where no two prompts begin alike."""
    first = [one.shared[0][0] for one in found if one.shared]
    return [one.shared for one in found] if len(set(first)) < len(first) else []
