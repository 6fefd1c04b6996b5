"""Robust linear least squares, with a prior for numbers that the data do not separate."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from pd_planner.traffic.load import Floats

_ROUNDS: Final = 20
_OUTLIER: Final = 0.03  # relative residuals above this count for less


@dataclass(frozen=True)
class Fitted:
    """Coefficients, their covariance, and the median and ninth decile of the relative residual over `rows`."""

    values: Floats
    covariance: Floats
    median_error: float
    p90_error: float
    rows: int


def regress(columns: Floats, target: Floats, prior: Floats, doubt: Floats) -> Fitted:
    """Find x with columns · x = target, in relative terms.

    Args:
        columns: rows × numbers.
        target: above 0.
        prior, doubt: prior values and their standard deviations; they count where the rows do not separate the numbers.
    """
    rows, wanted, weights = columns / target[:, None] * doubt, np.ones(len(target)), np.ones(len(target))
    values = prior / doubt
    for _ in range(_ROUNDS):
        noise = max(float(np.sqrt(np.average((rows @ values - wanted) ** 2, weights=weights))), 1e-4)
        precision = (rows * weights[:, None]).T @ rows / noise**2 + np.eye(len(prior))
        pull = (rows * weights[:, None]).T @ wanted / noise**2 + prior / doubt
        values = np.asarray(np.linalg.solve(precision, pull), np.float64)
        weights = np.minimum(1.0, np.sqrt(_OUTLIER / np.maximum(np.abs(rows @ values - wanted), 1e-9)))
    errors = np.abs(rows @ values - wanted)
    return Fitted(
        values=values * doubt,
        covariance=np.linalg.inv(precision) * np.outer(doubt, doubt),
        median_error=float(np.median(errors)),
        p90_error=float(np.percentile(errors, 90)),
        rows=len(target),
    )
