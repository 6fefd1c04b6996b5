"""Numbers of a profile that engines' steps show: decoding by role, launches, and how long loading KV delays a batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
import numpy as np

from pd_planner.calibrate.launches import launch_of
from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.regression import Fitted, regress
from pd_planner.calibrate.steps import WINDOW, Windows, steps_of, windows_of
from pd_planner.profile.numbers import changed, number
from pd_planner.traffic.load import Floats
from pd_simulator.profile import Launch, Profile

FEWEST_WINDOWS: Final = 40
DECODE: Final = ("base_ms", "per_sequence_ms", "per_context_token_ms")
_DOUBT: Final = 0.5  # of a prior number's own value
_LEAST_MS: Final = (0.5, 0.5e-3)  # … but at least this, of a number and of one per token


@dataclass(frozen=True)
class StepNumbers:
    """Numbers from token stamps, not yet part of a profile.

    Attributes:
        values: by dotted name.
        fits: the regressions, by the kind of engine.
        launch: what launching a step with prompts takes; None without plain engines.
    """

    values: dict[str, float] = field(default_factory=dict)
    fits: dict[str, Fitted] = field(default_factory=dict)
    launch: Launch | None = None

    def put(self, profile: Profile) -> Profile:
        """The profile with these numbers."""
        put = changed(profile, self.values)
        return msgspec.structs.replace(put, launch=self.launch) if self.launch is not None else put


def step_numbers(start: Profile, runs: Sequence[Measured]) -> StepNumbers:
    """The numbers from all runs that name the engine of each answer; `start` gives the numbers that they do not show."""
    numbers = StepNumbers()
    windows = _joined([window for run in runs if not run.part for window in _windows(run)])
    if len(windows.took_ms) >= FEWEST_WINDOWS:
        numbers = replace(_with_plain(numbers, start, windows), launch=launch_of(start.launch, runs))
    handed = {
        part: _joined([window for run in runs if run.part == part for window in _windows(run)])
        for part in sorted({run.part for run in runs if run.part})
    }
    handed = {part: windows for part, windows in handed.items() if len(windows.took_ms) >= FEWEST_WINDOWS}
    return _with_handed(numbers, start, handed) if handed else numbers


def _windows(run: Measured) -> Iterator[Windows]:
    for streams in run.streams.values():
        if any(len(stream.stamps) > 1 for stream in streams):
            yield windows_of(steps_of(streams), plain=not run.part)


def _joined(parts: Sequence[Windows]) -> Windows:
    rows = [np.stack([each.took_ms, each.batch, each.context, each.joins, each.joined_tokens]) for each in parts]
    return Windows(*np.concatenate([np.empty((5, 0)), *rows], axis=1))


def _with_plain(numbers: StepNumbers, start: Profile, windows: Windows) -> StepNumbers:
    """Decoding on plain engines. What prompts add to their steps is fitted too, but it depends on launches, and is found otherwise."""
    decode = start.combined or start.decode
    extra = (
        start.prefill.base_ms - start.mixed.overlap_ms,
        start.mixed.prefill_token_share * start.prefill.per_token_ms,
    )
    prior = np.array([*(getattr(decode, name) for name in DECODE), *extra])
    fitted = regress(_columns(windows), windows.took_ms, prior, _doubt(prior))
    values = {f"combined.{name}": max(0.0, float(value)) for name, value in zip(DECODE, fitted.values, strict=False)}
    return replace(numbers, values=numbers.values | values, fits=numbers.fits | {"combined": fitted})


def _with_handed(numbers: StepNumbers, start: Profile, handed: dict[str, Windows]) -> StepNumbers:
    """One decode cost for all connectors, and two numbers of loading each."""
    parts = list(handed)
    prior = [getattr(start.decode, name) for name in DECODE]
    blocks = []
    for position, part in enumerate(parts):
        columns = _columns(handed[part])
        loading = np.zeros((len(columns), 2 * len(parts)))
        loading[:, 2 * position : 2 * position + 2] = columns[:, 3:]
        blocks.append(np.hstack([columns[:, :3], loading]))
        prior += [number(start, f"{part}.stall_ms"), number(start, f"{part}.stall_per_token_ms")]
    known = np.array(prior)
    took = np.concatenate([handed[part].took_ms for part in parts])
    fitted = regress(np.vstack(blocks), took, known, _doubt(known))
    values = {f"decode.{name}": max(0.0, float(value)) for name, value in zip(DECODE, fitted.values, strict=False)}
    for position, part in enumerate(parts):
        once, per_token = fitted.values[3 + 2 * position : 5 + 2 * position]
        values |= _stall(part, float(once), max(0.0, float(per_token)))
    return replace(numbers, values=numbers.values | values, fits=numbers.fits | {"decode": fitted})


def _stall(part: str, once: float, per_token: float) -> dict[str, float]:
    """Loading that begins to be noticed only after some tokens has a line that crosses zero there."""
    free = -once / per_token if once < 0 < per_token else 0.0
    return {
        f"{part}.stall_ms": max(0.0, once),
        f"{part}.stall_per_token_ms": per_token,
        f"{part}.stall_free_tokens": free,
    }


def _columns(windows: Windows) -> Floats:
    steps = np.full(len(windows.took_ms), float(WINDOW))
    return np.column_stack([steps, windows.batch, windows.context, windows.joins, windows.joined_tokens])


def _doubt(prior: Floats) -> Floats:
    """Half of each number; per-token numbers come third, and then every second."""
    per_token = np.array([position == 2 or (position > 2 and position % 2 == 0) for position in range(len(prior))])
    doubt: Floats = np.maximum(_DOUBT * np.abs(prior), np.where(per_token, _LEAST_MS[1], _LEAST_MS[0]))
    doubt[2] = max(_DOUBT * abs(float(prior[2])), 1e-6)
    doubt[1] = max(_DOUBT * abs(float(prior[1])), 1e-3)
    return doubt
