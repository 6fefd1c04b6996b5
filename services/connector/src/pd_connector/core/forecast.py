"""When the last layer of a running step will have written its KV, from the times at which earlier layers did."""

from typing import Final

# What is left is forecast anew after each further quarter of the layers. Each look takes the engine's thread some time.
PARTS: Final = 4


def milestones(layers: int) -> dict[int, tuple[float, float]]:
    """The numbers of layers after which to look, with their share of all layers and the following share: after the first one, and after each quarter."""
    counts = sorted({1, *(part * layers // PARTS for part in range(1, PARTS))} & set(range(1, layers)))
    return {
        count: (count / layers, following / layers)
        for count, following in zip(counts, [*counts[1:], layers][: len(counts)], strict=True)
    }


class Forecast:
    """One step.

    Attributes:
        told: the time at which to tell is known, so what comes later changes nothing.
    """

    def __init__(self, lead_s: float) -> None:
        """Whoever is told must be told `lead_s` before the end."""
        self.told = False
        self._lead_s = lead_s
        self._before: tuple[float, float] | None = None

    def passed(self, share: float, now: float, following: float) -> float | None:
        """A `share` of the layers is done. Returns the time at which to tell, or None if that is better known at the `following` share."""
        before, self._before = self._before, (share, now)
        if before is None:
            # With so few layers there is nothing to compare with.
            self.told = following >= 1
            return now if self.told else None
        each = (now - before[1]) / (share - before[0])
        due = now + each * (1 - share) - self._lead_s
        self.told = following >= 1 or due <= now + each * (following - share)
        return due if self.told else None
