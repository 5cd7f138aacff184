"""Layers whose weight is no matrix of inputs and outputs: tables of embeddings, scales and shifts of normalisation.

Masked are their output units: the columns of a table, the channels that a normalisation scales and shifts. They are
looked up, and normalised, once for all draws; masks come after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyro_dropout._values import drop_equal
from pyro_dropout.weights._bias import finished, per_unit
from pyro_dropout.weights.weight import MaskedWeight, implements


@implements(F.embedding)
def _embedding(
    input: Tensor, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, *args: Any, **kwargs: Any
) -> Any:
    if not isinstance(weight, MaskedWeight) or weight.other is not None or weight.units.dim != 1:
        return NotImplemented  # words are masked: each draw has a table of its own
    loc = drop_equal(weight.loc, 2)
    if loc.dim() > 2 or max_norm is not None:
        return NotImplemented
    out = weight.dims.split(F.embedding(input, loc, padding_idx, None, *args, **kwargs))
    return finished(out, weight, weight.switches[0], None, out.shape[:-1])


def _scaled(normalised: Tensor, weight: MaskedWeight, bias: Any, space: int) -> Tensor:
    """``x · w + b``, one of each for a channel, merged as ``x`` is."""
    dims = weight.dims
    x = dims.split(normalised)
    batch = x.shape[: x.dim() - 1 - space]
    out = x * per_unit(weight, dims, batch, space)
    return dims.rejoin(out if bias is None else out + per_unit(bias, dims, batch, space))


def _is_scale(weight: Any) -> bool:
    return isinstance(weight, MaskedWeight) and weight.units.event_dim == 1


@implements(F.batch_norm)
def _batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> Any:
    if not _is_scale(weight):
        return NotImplemented
    normalised = F.batch_norm(input, running_mean, running_var, None, None, *args, **kwargs)
    return _scaled(normalised, weight, bias, input.dim() - 2)


@implements(F.group_norm)
def _group_norm(input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if not _is_scale(weight):
        return NotImplemented
    return _scaled(F.group_norm(input, num_groups, None, None, eps), weight, bias, input.dim() - 2)


@implements(F.layer_norm)
def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if not _is_scale(weight):
        return NotImplemented
    return _scaled(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias, 0)
