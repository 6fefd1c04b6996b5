"""The traffics: lengths of prompts and answers, objectives, and when requests come. Seeded; nothing is measured here.

Lengths of Azure's and Mooncake's traffics are drawn from log-normal distributions with the medians and means that were published about
them (Splitwise, arXiv 2311.18677, table 2 and figure 3; Mooncake, arXiv 2407.00079, section 4): the traces themselves are not part of this repository.
"""

# ruff: noqa: INP001  a part of a script

from dataclasses import dataclass
from typing import Final

import numpy as np

from pd_planner.traffic.load import Floats, Ints, Load

PHASE_S: Final = 15.0


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths, tokens; where median and mean are the same, all are alike."""

    median: int
    mean: int
    most: int = 16384

    def draw(self, random: np.random.Generator, count: int) -> Ints:
        if self.mean <= self.median:
            return np.full(count, self.median, np.int64)
        sigma = np.sqrt(2 * np.log(self.mean / self.median))
        return np.clip(random.lognormal(np.log(self.median), sigma, count), 4, self.most).astype(np.int64)


@dataclass(frozen=True)
class Shape:
    """Prompts and answers."""

    prompt: Lengths
    answer: Lengths


def alike(prompt: int, answer: int) -> Shape:
    """All requests have these lengths."""
    return Shape(Lengths(prompt, prompt), Lengths(answer, answer))


CONV: Final = Shape(Lengths(1020, 1155), Lengths(129, 211, 2048))
CODE: Final = Shape(Lengths(1500, 2047), Lengths(13, 28, 1024))
MOONCAKE: Final = Shape(Lengths(6900, 12035, 32768), Lengths(350, 380, 2048))


@dataclass(frozen=True)
class Case:
    """A traffic with its objectives, ms. Of several shapes each request has one (`drift`: in turn for 15 s each).

    Attributes:
        tuned: whether the rule's numbers were chosen looking at it (on other seeds).
        lasts: how long each load is, s, whatever is asked for; 0 if that does not matter.
    """

    name: str
    ttft: float
    tpot: float
    shapes: tuple[Shape, ...]
    drift: bool = False
    tuned: bool = True
    lasts: float = 0.0

    @property
    def label(self) -> str:
        """Name and objectives."""
        return f"{self.name}, {self.ttft:g}/{self.tpot:g}"

    def load(self, rate: float, seconds: float, seed: int, cv: float = 1.0) -> Load:
        """Requests at so many a second; gaps are Gamma distributed with this coefficient of variation (1: Poisson)."""
        random = np.random.default_rng(seed)
        return self.drawn(random, arrivals(random, rate, seconds, cv))

    def drawn(self, random: np.random.Generator, at: Floats) -> Load:
        """Requests at these times."""
        count = len(at)
        which = (
            (at // PHASE_S).astype(np.int64) % len(self.shapes)
            if self.drift
            else random.integers(len(self.shapes), size=count)
        )
        prompts = np.stack([shape.prompt.draw(random, count) for shape in self.shapes])
        answers = np.stack([shape.answer.draw(random, count) for shape in self.shapes])
        index = np.arange(count)
        return Load.of(at, prompts[which, index], answers[which, index])


def arrivals(random: np.random.Generator, rate: float, seconds: float, cv: float) -> Floats:
    """Times of requests, Gamma distributed gaps with this coefficient of variation."""
    gaps = random.gamma(1 / cv**2, cv**2 / rate, int(rate * seconds * 1.5) + 100)
    at = np.cumsum(gaps)
    return at[at < seconds]


def _three(
    name: str, shapes: tuple[Shape, ...], limits: tuple[tuple[float, float], ...], *, drift: bool = False
) -> list[Case]:
    return [Case(name, ttft, tpot, shapes, drift) for ttft, tpot in limits]


CASES: Final = (
    *_three("512→64", (alike(512, 64),), ((100, 15), (200, 10), (500, 8))),
    *_three("2048→128", (alike(2048, 128),), ((150, 20), (300, 10), (1000, 8))),
    *_three("2048→512", (alike(2048, 512),), ((150, 20), (300, 10), (1000, 8))),
    *_three("8192→256", (alike(8192, 256),), ((400, 25), (800, 12), (3000, 9))),
    *_three("conversation", (CONV,), ((300, 20), (500, 10), (1500, 8))),
    *_three("code", (CODE,), ((500, 30), (1000, 15), (2000, 10))),
    *_three("half and half", (CONV, CODE), ((300, 25), (500, 12), (1500, 9))),
    *_three("drift", (CONV, CODE), ((300, 25), (500, 12), (1500, 9)), drift=True),
)
NEW: Final = (
    Case("1024→256", 300, 12, (alike(1024, 256),), tuned=False),
    Case("4096→64", 500, 15, (alike(4096, 64),), tuned=False),
    Case("256→256", 150, 9, (alike(256, 256),), tuned=False),
    Case("3000→900", 600, 12, (alike(3000, 900),), tuned=False),
    Case("Mooncake's conversation", 3000, 20, (MOONCAKE,), tuned=False),
)
