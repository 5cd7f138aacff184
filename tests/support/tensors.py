"""Tensors in double precision, for comparisons within rounding errors, and masks that keep 0.6."""

import torch

KEEP = torch.tensor([0.6], dtype=torch.float64)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def bits(*shape):
    return torch.bernoulli(torch.full(shape, 0.6, dtype=torch.float64))
