"""Traffics that change while they last: lengths drift, rates rise and fall, a batch job begins. Seeded; nothing is measured here."""

# ruff: noqa: INP001  a part of a script

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from cases import CODE, CONV, Case, Shape, alike, arrivals

from pd_planner.traffic.load import Floats, Ints, Load

LASTS_S: Final = 90.0
# Waves of the rate within one load, and how far it swings about its mean.
WAVES: Final = 2
SWING: Final = 0.7
GRID: Final = 2000


class Course(StrEnum):
    """How a stream's rate changes; its mean is the same."""

    EVEN = "even"
    WAVE = "wave"
    OPPOSITE = "opposite"
    SECOND_HALF = "second half"

    def warped(self, at: Floats) -> Floats:
        """Times of an even stream, as shares of its duration, moved to where this stream has them."""
        grid = np.linspace(0, 1, GRID)
        angle = 2 * np.pi * WAVES * grid
        rate = {
            Course.EVEN: np.ones(GRID),
            Course.WAVE: 1 - SWING * np.cos(angle),
            Course.OPPOSITE: 1 + SWING * np.cos(angle),
            Course.SECOND_HALF: (grid >= 0.5).astype(np.float64),
        }[self]
        sums = np.cumsum(rate)
        moved: Floats = np.interp(at, sums / sums[-1], grid)
        return moved


@dataclass(frozen=True)
class Stream:
    """One tenant's requests: their share of all, when they come, and their lengths at the beginning and at the end, between which they drift."""

    first: Shape
    last: Shape
    share: float = 1.0
    course: Course = Course.EVEN

    def load(self, random: np.random.Generator, rate: float, seconds: float, cv: float) -> tuple[Floats, Ints, Ints]:
        """Times and lengths."""
        when = self.course.warped(arrivals(random, self.share * rate, seconds, cv) / seconds)
        count = len(when)
        prompts = _between(self.first.prompt.draw(random, count), self.last.prompt.draw(random, count), when)
        answers = _between(self.first.answer.draw(random, count), self.last.answer.draw(random, count), when)
        return seconds * when, prompts, answers


def _between(first: Ints, last: Ints, when: Floats) -> Ints:
    lengths: Ints = np.rint(first ** (1 - when) * last**when).astype(np.int64)
    return lengths


@dataclass(frozen=True)
class Changing(Case):  # type: ignore[misc]  # scripts are checked one by one
    """A traffic of several streams."""

    streams: tuple[Stream, ...] = ()

    def load(self, rate: float, seconds: float, seed: int, cv: float = 1.0) -> Load:
        random = np.random.default_rng(seed)
        parts = [stream.load(random, rate, seconds, cv) for stream in self.streams]
        at, prompts, answers = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(at, kind="stable")
        return Load.of(at[order], prompts[order], answers[order])


def _three(name: str, limits: tuple[tuple[float, float], ...], *streams: Stream) -> list[Changing]:
    shapes = tuple(stream.first for stream in streams)
    return [Changing(name, ttft, tpot, shapes, tuned=False, lasts=LASTS_S, streams=streams) for ttft, tpot in limits]


def steady(shape: Shape, share: float = 1.0, course: Course = Course.EVEN) -> Stream:
    """Only the rate changes."""
    return Stream(shape, shape, share, course)


SHORT, LONG = alike(512, 128), alike(8192, 128)
BRIEF, WORDY = alike(2048, 32), alike(2048, 512)
CHANGING: Final = (
    *_three("prompts grow", ((400, 20), (800, 10), (3000, 9)), Stream(SHORT, LONG)),
    *_three("prompts shrink", ((400, 20), (800, 10), (3000, 9)), Stream(LONG, SHORT)),
    *_three("answers grow", ((150, 20), (300, 10), (1000, 8)), Stream(BRIEF, WORDY)),
    *_three("answers shrink", ((150, 20), (300, 10), (1000, 8)), Stream(WORDY, BRIEF)),
    *_three("waves of conversation", ((300, 20), (500, 10), (1500, 8)), steady(CONV, course=Course.WAVE)),
    *_three(
        "conversation and code in opposite waves",
        ((300, 25), (500, 12), (1500, 9)),
        steady(CONV, 0.5, Course.WAVE),
        steady(CODE, 0.5, Course.OPPOSITE),
    ),
    *_three(
        "conversation, then documents too",
        ((500, 20), (800, 12), (2000, 9)),
        steady(CONV, 0.85),
        steady(alike(6000, 64), 0.15, Course.SECOND_HALF),
    ),
    *_three(
        "code, then long answers too",
        ((500, 25), (1000, 12), (2000, 9)),
        steady(CODE, 0.8),
        steady(alike(256, 900), 0.2, Course.SECOND_HALF),
    ),
)
