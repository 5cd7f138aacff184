"""Whether rows of a batch know each other: the gradient of some rows at others, which must be exactly zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Rows = tuple[Tensor, int]  # a tensor, and the dimension of its rows
_ALL_PAIRS, _SPLITS = 32, 2  # rows up to which every pair is looked at, and how many halves of more rows are


def mixes(outputs: Sequence[Rows], leaves: Sequence[Rows]) -> bool:
    """Whether some of the outputs' rows depend on other rows of the leaves.

    A few backward passes. Rows that are independent have gradients that are zero to the last bit, so that nothing is a
    matter of tolerance. What is not differentiable is not seen; of many rows a dependence of a few may be missed.

    :param outputs: tensors that depend on the leaves, all of one number of rows.
    :param leaves: tensors that require a gradient, of as many rows.
    """
    outputs = [(out, dim) for out, dim in outputs if out.requires_grad]
    if not outputs or not leaves:
        return False
    generator = torch.Generator().manual_seed(0)
    number = outputs[0][0].shape[outputs[0][1]]
    # Random weights, or rows might cancel: a softmax over them adds up to 1.
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out, _ in outputs]
    for picked in _halves(number, generator):
        directions = []
        for (out, dim), weight in zip(outputs, weights, strict=True):
            kept = picked.to(out).reshape(-1, *(1,) * (out.dim() - dim % out.dim() - 1))
            directions.append(weight * kept)
        tensors = [leaf for leaf, _ in leaves]
        found = torch.autograd.grad(
            [out for out, _ in outputs], tensors, directions, retain_graph=True, allow_unused=True
        )
        others = (~picked).nonzero().flatten()
        for gradient, (_, dim) in zip(found, leaves, strict=True):
            if gradient is not None and gradient.index_select(dim, others.to(gradient.device)).nan_to_num(0.0).any():
                return True
    return False


def _halves(number: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Which rows are picked: of few rows so that every two are parted both ways, else halves at random."""
    if number <= _ALL_PAIRS:
        codes = torch.arange(number)
        halves = [codes.bitwise_right_shift(bit) % 2 == 1 for bit in range(max(1, (number - 1).bit_length()))]
    else:
        halves = [torch.rand(number, generator=generator) < 0.5 for _ in range(_SPLITS)]
    for picked in halves:
        yield picked
        yield ~picked
