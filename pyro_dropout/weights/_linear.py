"""Linear layers with a masked weight: input or output is masked, ``loc`` is used as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyro_dropout._settings as settings
from pyro_dropout._values import drop_equal, is_traced
from pyro_dropout.weights._bias import finished, fused_or_added
from pyro_dropout.weights.units import MaskedUnits
from pyro_dropout.weights.weight import MaskedWeight, implements

_INPUTS = MaskedUnits()
_LARGE, _ROWS = 2**18, 256  # weights and data of a layer from which on taking kept units out may pay


@implements(F.linear)
def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, MaskedWeight) or any(
        s.units.event_dim != 2 or s.units.groups > 1 for s in weight.switches
    ):
        return NotImplemented
    inputs, outputs = weight.along(1), weight.along(0)
    if outputs is None and not isinstance(bias, MaskedWeight) and _in_draws(input, weight):
        if _few_kept(weight):
            return _linear_of_kept(input, weight, bias)
        if weight.merged[1] > weight.loc.shape[0]:
            return _linear_by_draw(input, weight, bias)
    dims = weight.dims
    x = dims.split(input) if inputs is None else weight.mask_input(input, inputs=inputs)
    batch = x.shape[:-1]
    loc = drop_equal(weight.loc, 2)
    fused, added = fused_or_added(bias, outputs)
    if loc.dim() == 2:
        out = F.linear(x, loc, fused)
    else:
        loc = dims.align(loc, batch, event_dim=2)  # [*plates, 1, out, in], or without the place of the data in x
        out = x @ loc.squeeze(-3).mT if loc.shape[-3] == 1 else (x.unsqueeze(-2) @ loc.mT).squeeze(-2)
        out = out if fused is None else out + fused
    return finished(out, weight, outputs, added, batch)


def _in_draws(input: Tensor, weight: MaskedWeight) -> bool:
    """Whether each draw of a mask meets all data, and no gradient is taken."""
    return (
        weight.masked
        and weight.units == _INPUTS
        and not torch.is_grad_enabled()
        and isinstance(weight.mask, Tensor)
        and len(weight.merged) == 2
        and weight.loc.dim() == 2
        and weight.mask.shape[:-1] == (weight.merged[0], 1)
        and input.dim() == 2
        and not torch.is_autocast_enabled(input.device.type)  # products into given memory know nothing of it
    )


def _few_kept(weight: Any) -> bool:
    """Whether it pays to take the kept units out: of large layers, where the copies cost less than what they save."""
    return (
        weight.loc.numel() >= _LARGE
        and weight.merged[1] >= _ROWS
        and not is_traced()
        and bool((weight.mask == 0).float().mean() > settings.take_out_above)
    )


def _linear_of_kept(input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """The same without the arithmetic of dropped units, draw by draw."""
    weight.check_input(input)
    dims = weight.dims
    scale = (weight.mask / weight.keep).expand(dims.merged[0], 1, -1)
    x = dims.whole(dims.split(input))
    out = x.new_empty(*dims.merged, weight.loc.shape[0])
    for draw in range(len(x)):
        kept = scale[draw, 0].nonzero().squeeze(1)
        loc = weight.loc.index_select(1, kept) * scale[draw, 0, kept]
        torch.mm(x[draw].index_select(1, kept), loc.mT, out=out[draw])
    if bias is not None:
        out += _by_draw(bias)
    return dims.rejoin(out)


def _linear_by_draw(input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """The same with the product of ``loc`` and each mask, which is smaller than the masked inputs would be."""
    weight.check_input(input)
    dims = weight.dims
    loc = weight.loc * (weight.mask / weight.keep)
    x = dims.whole(dims.split(input))
    return dims.rejoin(x @ loc.mT if bias is None else torch.baddbmm(_by_draw(bias), x, loc.mT))


def _by_draw(bias: Tensor) -> Tensor:
    """The same for all draws, or one for each: ``[out]`` or ``[draws, 1, out]``."""
    bias = drop_equal(bias, 1)
    return bias if bias.dim() == 1 else bias.reshape(-1, 1, bias.shape[-1])
