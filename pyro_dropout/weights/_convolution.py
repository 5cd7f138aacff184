"""Convolutions with a masked weight, plain and transposed: channels are masked, ``loc`` is used as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dropout._values import drop_equal
from pyro_dropout.weights._bias import finished, fused_or_added
from pyro_dropout.weights.weight import MaskedWeight, implements


def _convolution(convolve: Callable, space: int, dim: int) -> Callable:
    """A convolution over ``space`` dimensions whose weight has its input channels at ``dim``."""

    def layer(input: Tensor, weight: Any, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(weight, MaskedWeight) or any(s.units.dim not in (0, 1) for s in weight.switches):
            return NotImplemented
        inputs, outputs, dims = weight.along(dim), weight.along(1 - dim), weight.dims
        if inputs is None:
            x = dims.split(input)
        else:
            if isinstance(inputs.mask, Tensor) and input.shape[-1 - space] != inputs.units.width(weight.event_shape):
                return NotImplemented  # one mask entry for the same channel of every group: dense
            x = weight.mask_input(input, space, inputs)
        batch = x.shape[: x.dim() - 1 - space]
        loc = drop_equal(weight.loc, space + 2)
        fused, added = fused_or_added(bias, outputs)
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
        return finished(out, weight, outputs, added, batch, space)

    return layer


for _space in (1, 2, 3):
    for _name, _dim in ((f"conv{_space}d", 1), (f"conv_transpose{_space}d", 0)):
        implements(getattr(torch, _name))(_convolution(getattr(torch, _name), _space, _dim))
