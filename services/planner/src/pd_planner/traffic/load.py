"""A load as arrays: one entry per request, in the order of arrival."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Load:
    """Requests: seconds, ascending from 0; tokens; and how many prompt tokens are in the prefix cache of the engine that they come to."""

    at: Floats
    prompt: Ints
    output: Ints
    cached: Ints

    @classmethod
    def of(cls, at: npt.ArrayLike, prompt: npt.ArrayLike, output: npt.ArrayLike, cached: npt.ArrayLike = 0) -> "Load":
        """From anything that numpy takes; a single length is that of every request."""
        times = np.asarray(at, np.float64)
        return cls(times, *(_whole(value, len(times)) for value in (prompt, output, cached)))

    def first(self, count: int) -> "Load":
        """The same load, cut to the first requests."""
        return Load(self.at[:count], self.prompt[:count], self.output[:count], self.cached[:count])

    def __len__(self) -> int:
        return len(self.at)


def _whole(value: npt.ArrayLike, count: int) -> Ints:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.int64), (count,)))
