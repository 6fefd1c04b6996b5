"""The offered loads: their rates and durations, and from these the points that are measured. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from pd_control.planning.gpus import PlanError

SERVE: Final = "serve"
PHASE_SPLIT: Final = "phase-split"
BATCH: Final = "batch"
MODES: Final = (SERVE, PHASE_SPLIT, BATCH)

# A p99 rests on the slowest hundredth: a thousand requests have ten of those. No point takes longer than five minutes.
_REQUESTS_A_POINT: Final = 1000
_SHORTEST_S: Final = 60.0
_LONGEST_S: Final = 300.0
# Enough prompts for a median, and energy over several seconds.
_PHASE_SPLIT_REQUESTS: Final = "16"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of traffic.

    Attributes:
        name: its part of a run folder's name.
        options: pd-loadgen's, as texts by field name.
        rates: requests per second per GPU; empty if they are to be found, or if the load has its own times.
        paced: whether a rate can be chosen; a trace has its own times.
        length_s: duration of a load that has its own times, in seconds.
    """

    name: str
    options: dict[str, str]
    rates: list[float] = msgspec.field(default_factory=list)
    paced: bool = True
    length_s: float = 0.0

    @property
    def searches(self) -> bool:
        """Whether its rates are found by a search."""
        return self.paced and not self.rates

    @property
    def title(self) -> str:
        """Its lengths as reports write them, 4,096 → 64; the name of a load that has none of its own."""
        lengths = [self.options.get(name, "") for name in ("input_tokens", "output_tokens")]
        return " → ".join(f"{int(length):,}" for length in lengths) if all(map(str.isdecimal, lengths)) else self.name


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `rate_per_gpu` is requests per second per GPU, None where the load has its own times."""

    load: Load
    mode: str = SERVE
    rate_per_gpu: float | None = None
    seed: int = 0
    duration_s: float | None = None

    @property
    def name(self) -> str:
        """Its folder within the deployment's."""
        rate = "" if self.rate_per_gpu is None else f"rate{self.rate_per_gpu:g}"
        mode = "" if self.mode == SERVE else self.mode
        return "-".join(filter(None, (self.load.name, mode, rate, f"seed{self.seed}")))

    @property
    def words(self) -> str:
        parts = [self.load.title]
        if self.mode != SERVE:
            parts.append(self.mode)
        if self.rate_per_gpu is not None:
            parts.append(f"{self.rate_per_gpu:g} requests/s per GPU")
        return ", ".join([*parts, f"seed {self.seed}"])


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is offered to each deployment.

    Attributes:
        start_rate: where the search for rates begins, requests per second per GPU.
        attainment: share of requests that must meet the limits for a rate to count as carried.
        duration_s: of each point; None makes each as long as its percentiles need.
        common: options of pd-loadgen that every point has.
    """

    loads: list[Load]
    modes: list[str] = msgspec.field(default_factory=lambda: [SERVE])
    start_rate: float = 1.0
    attainment: float = 0.9
    seeds: list[int] = msgspec.field(default_factory=lambda: [0])
    duration_s: float | None = None
    goodput: str = ""
    batch_sizes: str = ""
    common: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def searches(self) -> bool:
        """Whether any rates are found by a search."""
        return SERVE in self.modes and any(load.searches for load in self.loads)

    def seconds(self, rate: float) -> float:
        """How long a point of `rate` requests per second lasts."""
        if self.duration_s is not None:
            return self.duration_s
        return round(min(_LONGEST_S, max(_SHORTEST_S, _REQUESTS_A_POINT / rate)), 1)


def shapes(text: str) -> list[Load]:
    """Read "512:64,2048:128": prompt and answer lengths in tokens.

    Raises:
        PlanError: for anything else.
    """
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        inputs, colon, outputs = entry.partition(":")
        if not (colon and inputs.isdigit() and outputs.isdigit() and int(inputs) and int(outputs)):
            msg = f"--input-output {entry!r}: write prompt and answer lengths as 512:64, separated by commas"
            raise PlanError(msg)
        options = {"input_tokens": str(int(inputs)), "output_tokens": str(int(outputs))}
        found.append(Load(name=f"{int(inputs)}x{int(outputs)}", options=options))
    if not found:
        msg = "--input-output is empty: write prompt and answer lengths as 512:64"
        raise PlanError(msg)
    _refuse_twice([load.name for load in found], "--input-output")
    return found


def with_rates(loads: Sequence[Load], text: str) -> list[Load]:
    """Each load with its rates: one list for all, or lists separated by / in the order of the loads; `find` means a search.

    Raises:
        PlanError: if a list cannot be read, or there are fewer or more lists than loads.
    """
    lists = text.split("/")
    if len(lists) not in {1, len(loads)}:
        msg = (
            f"--rates has {len(lists)} lists for {len(loads)} loads: write one for all, or one for each, separated by /"
        )
        raise PlanError(msg)
    read = [[] if part.strip() in {"", "find"} else sorted(numbers(part, "--rates")) for part in lists]
    return [
        msgspec.structs.replace(load, rates=read[number if len(read) > 1 else 0]) for number, load in enumerate(loads)
    ]


def seeds(text: str) -> list[int]:
    """Read "0,1,2".

    Raises:
        PlanError: for anything but whole numbers from 0 on.
    """
    parts = [part for part in text.replace(" ", ",").split(",") if part]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        msg = f"--seeds {text!r}: write whole numbers of 0 or more, separated by commas"
        raise PlanError(msg)
    _refuse_twice([str(int(part)) for part in parts], "--seeds")
    return [int(part) for part in parts]


def numbers(text: str, option: str) -> list[float]:
    """Read "1,2,4.5".

    Raises:
        PlanError: naming the option and the value that is not a number above 0.
    """
    found = []
    for entry in filter(None, (part.strip() for part in text.replace(" ", ",").split(","))):
        try:
            number = float(entry)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            msg = f"{option} {entry!r}: write numbers above 0, separated by commas"
            raise PlanError(msg)
        found.append(number)
    if not found:
        msg = f"{option} is empty: write numbers, separated by commas"
        raise PlanError(msg)
    _refuse_twice([f"{number:g}" for number in found], option)
    return found


def _refuse_twice(names: Sequence[str], option: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        msg = f"{option}: {twice[0]} is given twice"
        raise PlanError(msg)


def fixed(offer: Offer, gpus: int) -> Iterator[Point]:
    """The points in mode serve that are known beforehand, for a deployment of this many GPUs, ordered by lengths, rates, seeds."""
    for load in offer.loads:
        rates: list[float | None] = [*load.rates] if load.paced else [None]
        for rate in rates:
            yield from repeats(offer, load, rate, gpus)


def repeats(offer: Offer, load: Load, rate: float | None, gpus: int) -> Iterator[Point]:
    """One load at one rate, for every seed."""
    seconds = None if rate is None else offer.seconds(rate * gpus)
    for seed in offer.seeds:
        yield Point(load=load, rate_per_gpu=rate, seed=seed, duration_s=seconds)


def classic(offer: Offer) -> Iterator[Point]:
    """The single-instance points, in the modes other than serve; a trace has no lengths for them."""
    for mode in offer.modes:
        if mode != SERVE:
            yield from (Point(load=load, mode=mode, seed=offer.seeds[0]) for load in offer.loads if load.paced)


def arguments(point: Point, offer: Offer, gpus: int) -> dict[str, str]:
    """pd-loadgen's options of a point, without the address; equal for all deployments of the same number of GPUs."""
    chosen = {**offer.common, **point.load.options, "mode": point.mode, "seed": str(point.seed)}
    if offer.goodput:
        chosen["goodput"] = offer.goodput
    if point.rate_per_gpu is not None:
        chosen["rate"] = f"{point.rate_per_gpu * gpus:.9g}"
    if point.duration_s is not None:
        chosen["duration"] = f"{point.duration_s:g}"
    if point.mode == BATCH and offer.batch_sizes:
        chosen["batch_sizes"] = offer.batch_sizes
    if point.mode == PHASE_SPLIT:
        chosen.setdefault("requests", _PHASE_SPLIT_REQUESTS)
    return chosen


def command_line(options: Mapping[str, str]) -> list[str]:
    """Options as words; a switch is `on` or `off`."""
    words: list[str] = []
    for name, text in options.items():
        option = name.replace("_", "-")
        if text in {"on", "off"}:
            words.append(f"--{option}" if text == "on" else f"--no-{option}")
        else:
            words.append(f"--{option}={text}")
    return words
