"""Drop rates of covariates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_rate(rate: Any, p: int) -> Tensor:
    """The drop rate of each covariate, ``[p]``, in [0, 1)."""
    rate = torch.as_tensor(rate, dtype=torch.float64)
    if rate.shape not in ((), (p,)):
        raise ValueError(
            f"rate must be a number, or one for each of {p} covariates, but found shape {tuple(rate.shape)}"
        )
    if not bool(((rate >= 0) & (rate < 1)).all()):
        raise ValueError(
            f"rate is the probability of dropping a covariate and lies in [0, 1), but found {rate.tolist()}"
        )
    return rate.expand(p)
