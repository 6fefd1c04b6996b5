"""Learns whether engines are faster than their profile says. No I/O, no clock.

If the costs are too high, requests are predicted to miss objectives that they would meet, and prefill and decode are separated too early.
Costs that are too low are not raised here: `costs.MARGIN` and `View.correction` are for them, and a first token takes more than its prompt.
"""

from typing import Final

# The weight of one prompt. Its time varies most if it is short; the sums are dominated by long ones.
WEIGHT: Final = 0.02
ENOUGH: Final = 20  # prompts, before the costs are changed
# Above this, costs are left as they are: the model of a step is not more exact than that.
EXACT: Final = 0.93
# Prompts that the engine has in its prefix cache take next to no time, but the next one may not be there, and answers become no cheaper.
LEAST: Final = 0.85


class Pace:
    """`factor` is what the profile's costs are multiplied by: 1 unless prompts take less time."""

    def __init__(self, margin: float) -> None:
        """`margin` remains: costs are not lowered below so many times what was observed."""
        self.factor = 1.0
        self._margin = margin
        self._seen = 0
        self._took = self._expected = 0.0

    def saw(self, took: float, expected: float) -> bool:
        """An engine needed `took` ms for a prompt, and `expected` by the profile, margin included. Returns whether the factor has changed."""
        self._took += WEIGHT * (took - self._took)
        self._expected += WEIGHT * (expected - self._expected)
        self._seen += 1
        before = self.factor
        if self._seen >= ENOUGH and self._expected > 0:
            observed = self._margin * self._took / self._expected
            self.factor = 1.0 if observed > EXACT else round(max(LEAST, observed), 2)
        return self.factor != before
