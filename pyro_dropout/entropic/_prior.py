"""The parameters that a fit is made with, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pyro_dropout.entropic._rate import check_rate


@dataclass(frozen=True)
class Prior:
    """The parameters of a fit.

    :param keep: 1 - f of each covariate, ``[p]``.
    """

    keep: Tensor
    shrinkage: float
    a0: float
    b0: float
    intercept: bool


def check_prior(parameters: dict[str, Any], p: int) -> Prior:
    """Of an estimator's parameters by name, for p covariates."""
    for name in ("shrinkage", "a0", "b0"):
        value = parameters[name]
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"{name} must be a number, but found {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, but found {value}")
    intercept = parameters["fit_intercept"]
    if not isinstance(intercept, int | np.bool_) or intercept not in (0, 1):
        raise TypeError(f"fit_intercept must be True or False, but found {intercept!r}")
    keep = 1 - check_rate(parameters["rate"], p)
    return Prior(keep, parameters["shrinkage"], parameters["a0"], parameters["b0"], bool(intercept))
