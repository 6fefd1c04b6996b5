"""When to sample: deadlines counted from one start, so that a late tick does not move the ones after it."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Schedule:
    """Tick `number` is due at `start + number * interval`, on whatever clock `start` was read from."""

    start: float
    interval: float
    number: int = 0

    @property
    def deadline(self) -> float:
        return self.start + self.number * self.interval

    def after(self, now: float) -> tuple["Schedule", int]:
        """The next tick that `now` has not already passed, and how many were skipped to reach it."""
        first_ahead = math.floor((now - self.start) / self.interval) + 1
        following = max(self.number + 1, first_ahead)
        return replace(self, number=following), following - self.number - 1
