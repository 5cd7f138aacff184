"""Marginal quantiles of masked weights, from those of their masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_dropout._checks import as_numbers, said
from pyro_dropout.masks.distributions import Mask
from pyro_dropout.weights.units import MaskedUnits


def checked_levels(quantiles: Any) -> Tensor:
    """Of doubles, ``[k]``."""
    q = as_numbers("quantiles", quantiles).double()
    if q.dim() != 1 or not len(q) or not bool(((q >= 0) & (q <= 1)).all()):
        raise ValueError(f"quantiles must be a list of probabilities between 0 and 1, but found {said(quantiles)}")
    return q


def of_weight(loc: Tensor, mask: Mask, units: MaskedUnits, levels: Tensor) -> Tensor:
    """Of ``loc · z / keep``, ``[k, *loc's shape]``: where ``loc`` is negative, of the other end of z."""
    event_shape = loc.shape[-units.event_dim :]
    q = levels.to(loc).reshape(-1, *(1,) * mask.keep.dim())
    z, mirrored = (units.spread(mask.icdf(p) / mask.keep, event_shape) for p in (q, 1 - q))
    return torch.where(loc > 0, loc * z, loc * mirrored)
