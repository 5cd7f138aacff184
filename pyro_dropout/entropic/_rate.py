"""Drop rates of covariates, and which covariates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_dropout._checks import as_numbers


def check_rate(rate: Any, p: int) -> Tensor:
    """The drop rate of each covariate, ``[p]``, in [0, 1)."""
    try:
        rate = torch.as_tensor(rate, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"rate must be a number, or one for each of {p} covariates, but found {rate!r}") from error
    if rate.shape not in ((), (p,)):
        raise ValueError(
            f"rate must be a number, or one for each of {p} covariates, but found shape {tuple(rate.shape)}"
        )
    if not bool(((rate >= 0) & (rate < 1)).all()):
        raise ValueError(
            f"rate is the probability of dropping a covariate and lies in [0, 1), but found {rate.tolist()}"
        )
    return rate.expand(p)


def check_index(index: Any, p: int) -> Tensor:
    """Places of covariates, ``[k]``, of places from either end or of a mask ``[p]``."""
    index = torch.atleast_1d(as_numbers("index", index))
    if index.dtype == torch.bool and index.shape == (p,):
        return torch.nonzero(index).flatten()
    if index.dtype.is_floating_point or index.dtype == torch.bool or index.dim() != 1:
        raise ValueError(f"index must be places of {p} covariates, or a mask of that size, but found {index.tolist()}")
    if bool(((index < -p) | (index >= p)).any()):
        raise ValueError(f"index must be below {p} covariates, but found {index.tolist()}")
    return index % p
