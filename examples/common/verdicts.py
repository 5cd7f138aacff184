"""What a claim of a paper comes to: confirmed, refuted or not settled, by paired differences and their error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

CONFIRMED, REFUTED, NOT_SETTLED = "confirmed", "refuted", "not settled"


def interval(differences: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval of their mean; of fewer than two the whole line."""
    if len(differences) < 2:
        return -np.inf, np.inf
    mean, error = np.mean(differences), np.std(differences, ddof=1) / len(differences) ** 0.5
    reach = t.ppf((1 + level) / 2, len(differences) - 1) * error
    return float(mean - reach), float(mean + reach)


def larger(differences: Sequence[float] | np.ndarray) -> str:
    """Of the claim that they are positive in the mean, by the 95 % interval."""
    low, high = interval(differences)
    return CONFIRMED if low > 0 else REFUTED if high < 0 else NOT_SETTLED


def alike(differences: Sequence[float] | np.ndarray, margin: float) -> str:
    """Of the claim that they are 0 in the mean: within ± margin, or outside of it, by the 95 % interval."""
    low, high = interval(differences)
    if -margin < low and high < margin:
        return CONFIRMED
    return REFUTED if low > margin or high < -margin else NOT_SETTLED
