"""Convolutions with a masked weight, plain and transposed: input channels are masked, ``loc`` is used as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dropout._values import drop_equal
from pyro_dropout.weights._bias import fused_or_added, with_bias
from pyro_dropout.weights.weight import MaskedWeight, implements


def _convolution(convolve: Callable, space: int, dim: int) -> Callable:
    """A convolution over ``space`` dimensions whose weight has its input channels at ``dim``."""

    def layer(input: Tensor, weight: Any, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(weight, MaskedWeight) or weight.units.dim != dim:
            return NotImplemented
        channels = input.shape[-1 - space]
        if isinstance(weight.mask, Tensor) and channels != weight.mask.shape[-1]:
            return NotImplemented  # one mask entry for the same channel of every group: dense
        x = weight.mask_input(input, space)
        batch, dims = x.shape[: x.dim() - 1 - space], weight.dims
        loc = drop_equal(weight.loc, space + 2)
        fused, added = fused_or_added(bias)
        if loc.dim() == space + 2:
            outer = batch[:-1]
            out = convolve(x.flatten(0, len(outer)) if outer else x, loc, fused, *args, **kwargs)
            out = out.unflatten(0, batch) if outer else out
        else:
            # Many networks at once: one grouped convolution, which is what vmap makes of it.
            loc = dims.align(loc, batch, event_dim=space + 2).squeeze(-space - 3)
            outer = torch.broadcast_shapes(batch[:-1], loc.shape[: loc.dim() - space - 2])
            x = x.expand(*outer, *x.shape[len(batch) - 1 :])
            loc = loc.expand(*outer, *weight.event_shape)
            pairs = (t.reshape(-1, *t.shape[len(outer) :]) for t in (x, loc))
            out = torch.vmap(lambda a, b: convolve(a, b, fused, *args, **kwargs))(*pairs).unflatten(0, outer)
        return with_bias(out, added, dims, batch, space)

    return layer


for _space in (1, 2, 3):
    for _name, _dim in ((f"conv{_space}d", 1), (f"conv_transpose{_space}d", 0)):
        implements(getattr(torch, _name))(_convolution(getattr(torch, _name), _space, _dim))
