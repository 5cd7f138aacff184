"""Layers with a masked weight: the input is masked, ``loc`` is used as it is.

Below the chain weight → distributions → guides → losses: the weight calls these for its operations. ``weight`` is
always a :class:`~pyro_dropout.weights.weight.MaskedWeight`; a layer that cannot mask its input returns NotImplemented, and
gets the dense weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_dropout._sites import is_traced

_LARGE, _ROWS, _DROPPED = 2**18, 256, 0.3  # weights, data, and share of units: where kept units are taken out


def drop_equal(t: Tensor, event_dim: int) -> Tensor:
    """Drops batch dimensions along which all entries are the same memory (size 1, or expanded)."""
    for d in range(t.dim() - event_dim):
        if t.shape[d] > 1 and t.stride(d) != 0:
            return t
    return t[(0,) * (t.dim() - event_dim)] if t.dim() > event_dim else t


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if weight.units != (2, 1, 1):  # event_dim, dim, groups
        return NotImplemented
    if _in_draws(input, weight):
        if _few_kept(weight):
            return _linear_of_kept(input, weight, bias)
        if weight.lead[1] > weight.loc.shape[0]:
            return _linear_by_draw(input, weight, bias)
    x = weight.mask_input(input)
    batch = x.shape[:-1]
    loc = drop_equal(weight.loc, 2)
    bias = None if bias is None else drop_equal(bias, 1)
    if loc.dim() == 2:
        fused = bias if bias is None or bias.dim() == 1 else None
        out = F.linear(x, loc, fused)
    else:
        fused = None
        loc = weight.align(loc, batch, event_dim=2)
        out = x @ loc.squeeze(-3).mT if loc.shape[-3] == 1 else (x.unsqueeze(-2) @ loc.mT).squeeze(-2)
    if bias is not fused:
        out = out + weight.align(bias, batch)
    return out.flatten(0, len(weight.lead) - 1) if weight.lead else out


def _in_draws(input: Tensor, weight: Any) -> bool:
    """Whether each draw of a mask meets all data, and no gradient is taken."""
    return (
        not torch.is_grad_enabled()
        and isinstance(weight.mask, Tensor)
        and len(weight.lead) == 2
        and weight.loc.dim() == 2
        and weight.mask.shape[:-1] == (weight.lead[0], 1)
        and input.dim() == 2
    )


def _few_kept(weight: Any) -> bool:
    """Whether it pays to take the kept units out: of large layers, where the copies cost less than what they save."""
    return (
        weight.loc.numel() >= _LARGE
        and weight.lead[1] >= _ROWS
        and not is_traced()
        and bool((weight.mask == 0).float().mean() > _DROPPED)
    )


def _linear_of_kept(input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """The same without the arithmetic of dropped units, draw by draw."""
    weight.check_input(input)
    scale = (weight.mask / weight.keep).expand(weight.lead[0], 1, -1)
    x = input.unflatten(0, weight.lead)
    out = x.new_empty(*weight.lead, weight.loc.shape[0])
    for draw in range(len(x)):
        kept = scale[draw, 0].nonzero().squeeze(1)
        own = weight.loc.index_select(1, kept) * scale[draw, 0, kept]
        torch.mm(x[draw].index_select(1, kept), own.mT, out=out[draw])
    if bias is not None:
        bias = drop_equal(bias, 1)
        out += bias if bias.dim() == 1 else bias.reshape(-1, 1, bias.shape[-1])
    return out.flatten(0, 1)


def _linear_by_draw(input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """The same with the product of ``loc`` and each mask, which is smaller than the masked inputs would be."""
    weight.check_input(input)
    by_draw = weight.loc * (weight.mask / weight.keep)
    x = input.unflatten(0, weight.lead)
    if bias is None:
        return (x @ by_draw.mT).flatten(0, 1)
    bias = drop_equal(bias, 1)
    return torch.baddbmm(bias if bias.dim() == 1 else bias.reshape(-1, 1, bias.shape[-1]), x, by_draw.mT).flatten(0, 1)


def _convolution(convolve: Callable, space: int, dim: int) -> Callable:
    def layer(input: Tensor, weight: Any, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if weight.units.dim != dim:
            return NotImplemented
        channels = input.shape[-1 - space]
        if isinstance(weight.mask, Tensor) and channels != weight.mask.shape[-1]:
            return NotImplemented  # one mask entry for the same channel of every group: dense
        x = weight.mask_input(input, space)
        batch = x.shape[: x.dim() - 1 - space]
        loc = drop_equal(weight.loc, space + 2)
        bias = None if bias is None else drop_equal(bias, 1)
        fused = bias if bias is None or bias.dim() == 1 else None
        if loc.dim() == space + 2:
            outer = batch[:-1]
            out = convolve(x.flatten(0, len(outer)) if outer else x, loc, fused, *args, **kwargs)
            out = out.unflatten(0, batch) if outer else out
        else:
            # Many networks at once: one grouped convolution, which is what vmap makes of it.
            loc = weight.align(loc, batch, event_dim=space + 2).squeeze(-space - 3)
            outer = torch.broadcast_shapes(batch[:-1], loc.shape[: loc.dim() - space - 2])
            x = x.expand(*outer, *x.shape[len(batch) - 1 :])
            loc = loc.expand(*outer, *weight.event_shape)
            pairs = (t.reshape(-1, *t.shape[len(outer) :]) for t in (x, loc))
            out = torch.vmap(lambda a, b: convolve(a, b, fused, *args, **kwargs))(*pairs).unflatten(0, outer)
        if bias is not fused:
            out = out + weight.align(bias, batch, space)
        return out.flatten(0, len(weight.lead) - 1) if weight.lead else out

    return layer


LAYERS: dict[Any, Callable] = {
    F.linear: _linear,
    torch.conv1d: _convolution(torch.conv1d, 1, dim=1),
    torch.conv2d: _convolution(torch.conv2d, 2, dim=1),
    torch.conv3d: _convolution(torch.conv3d, 3, dim=1),
    torch.conv_transpose1d: _convolution(torch.conv_transpose1d, 1, dim=0),
    torch.conv_transpose2d: _convolution(torch.conv_transpose2d, 2, dim=0),
    torch.conv_transpose3d: _convolution(torch.conv_transpose3d, 3, dim=0),
}
