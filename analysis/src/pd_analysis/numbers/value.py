"""A measured number with its standard error."""

import math
from dataclasses import dataclass

from pd_analysis.words.formatting import lost


@dataclass(frozen=True)
class Value:
    """A number and its standard error."""

    value: float
    error: float

    @property
    def lost(self) -> bool:
        """Whether the error is at least as large as the number."""
        return lost(self.value, self.error)

    def per(self, count: float) -> "Value":
        return Value(self.value / count, self.error / count)

    def over(self, other: "Value") -> "Value":
        """The quotient of two independent numbers."""
        quotient = self.value / other.value
        relative = math.hypot(self.error / self.value if self.value else 0.0, other.error / other.value)
        return Value(quotient, abs(quotient) * relative)
