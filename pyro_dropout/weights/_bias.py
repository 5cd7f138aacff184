"""What is done to what a layer's kernel returns: a mask of output units, and a bias that the kernel does not take.

A bias goes to the kernel; one that has batch dimensions or a mask of its own is added to what the kernel returns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_dropout._values import drop_equal
from pyro_dropout.weights.shapes import BatchDims
from pyro_dropout.weights.weight import MaskedWeight, Switch


def fused_or_added(bias: Tensor | None, outputs: Switch | None = None) -> tuple[Tensor | None, Tensor | None]:
    """The same bias for all, which a kernel takes, and one that differs between plates or is masked, which none does.

    :param outputs: the mask of output units, before which nothing may be added.
    """
    if isinstance(bias, MaskedWeight) or (outputs is not None and bias is not None):
        return None, bias
    bias = None if bias is None else drop_equal(bias, 1)
    return (None, bias) if bias is not None and bias.dim() > 1 else (bias, None)


def finished(
    out: Tensor,
    weight: MaskedWeight,
    outputs: Switch | None,
    added: Tensor | None,
    batch: torch.Size,
    space: int = 0,
) -> Tensor:
    """What a layer returns: its kernel's ``out · z / keep``, and the bias; merged as its input was.

    :param out: what the kernel returned, with its batch split.
    :param outputs: the mask of output units, if there is one.
    :param added: the bias that the kernel did not get.
    :param batch: batch dimensions of ``out``, split.
    """
    dims = weight.dims
    if outputs is not None:
        _check_width(out, weight, outputs, space)
        factor = weight.factor(outputs, batch, space).to(out.dtype)  # of lower precision under autocast
        if added is not None:
            return dims.rejoin(torch.addcmul(per_unit(added, dims, batch, space).to(out.dtype), out, factor))
        out = out * factor
    return dims.rejoin(out if added is None else out + per_unit(added, dims, batch, space))


def per_unit(value: Any, dims: BatchDims, batch: torch.Size, space: int = 0) -> Tensor:
    """A bias or a scale, one number for each unit, as it meets ``[*batch, units, *space]``."""
    if not isinstance(value, MaskedWeight):
        return dims.align(value, batch, space)
    loc = dims.align(value.loc, batch, space)
    return loc * value.factor(value.switches[0], batch, space) if value.masked else loc


def _check_width(out: Tensor, weight: MaskedWeight, outputs: Switch, space: int) -> None:
    width, found = outputs.units.width(weight.event_shape), out.shape[out.dim() - 1 - space]
    if found != width:
        raise ValueError(
            f"weight {weight.site!r} masks {width} output units, but its layer has {found}: say which with "
            "MaskedUnits, groups=... for a transposed convolution in groups"
        )
