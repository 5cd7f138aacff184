"""A bias: given to the layer's own kernel, or, with batch dimensions of its own, added to what it returns."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_dropout._values import drop_equal
from pyro_dropout.weights.shapes import BatchDims


def fused_or_added(bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The same bias for all, which a kernel takes, and one that differs between plates, which none does."""
    bias = None if bias is None else drop_equal(bias, 1)
    return (None, bias) if bias is not None and bias.dim() > 1 else (bias, None)


def with_bias(out: Tensor, added: Tensor | None, dims: BatchDims, batch: torch.Size, space: int = 0) -> Tensor:
    """What a layer returns, merged as its input was."""
    return dims.rejoin(out if added is None else out + dims.align(added, batch, space))
