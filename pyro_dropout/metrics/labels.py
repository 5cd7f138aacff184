"""Tensors of draws from whatever holds them: tensors, numpy arrays, and arrays of ArviZ, matched by their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dropout._checks import as_numbers

_DRAWS = ("chain", "draw", "sample")  # the names that ArviZ gives to draws


def from_draws(value: Any, name: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """``[draws, ...]``, and what gives a result ``[...]`` (or with fewer dimensions on the right) its labels back.

    Of an xarray ``DataArray`` chains and draws become one dimension; results of tensors stay tensors.
    """
    if not is_labelled(value, name):
        tensor = as_tensor(value, name)
        if tensor.dim() == 0 or len(tensor) == 0:
            found = "a scalar" if tensor.dim() == 0 else "none"
            raise ValueError(f"{name} must have draws on its first dimension, but found {found}")
        return tensor, lambda result: result
    draws = [d for d in _DRAWS if d in value.dims]
    if not draws:
        raise ValueError(
            f"{name} must have draws in a dimension chain, draw or sample, but found {', '.join(map(str, value.dims))}"
        )
    rest = [d for d in value.dims if d not in draws]
    tensor = as_tensor(value.transpose(*draws, *rest), name).flatten(0, len(draws) - 1)
    one = value.isel({d: 0 for d in draws}, drop=True)

    def label(result: Tensor) -> Any:
        like = one.isel({d: 0 for d in rest[result.dim() :]}, drop=True)
        return like.copy(data=result.cpu().numpy())

    return tensor, label


def class_probabilities(probs: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """As :func:`from_draws`, of class probabilities ``[draws, ..., classes]``."""
    p, label = from_draws(probs, "probs")
    if p.dim() < 2 or not p.shape[-1]:
        raise ValueError(f"probs must be [draws, ..., classes], but found shape {tuple(p.shape)}")
    check_finite(probs=p)
    if bool((p < 0).any()) or not bool(torch.isclose(p.sum(-1), p.new_ones(()), atol=1e-3).all()):
        raise ValueError(
            "probs must be probabilities that sum to one over the last dimension (logits.softmax(-1); for two classes "
            f"torch.stack([1 - p, p], -1)), but found entries from {p.min().item():.3g} to {p.max().item():.3g} with "
            f"sums from {p.sum(-1).min().item():.3g} to {p.sum(-1).max().item():.3g}"
        )
    return p, label


def as_tensor(value: Any, name: str, like: Any = None) -> Tensor:
    """A tensor; of a labelled array its entries in the order of those of a labelled ``like``, by their labels.

    :raises ValueError: labels that are not those of ``like``.
    :raises TypeError: entries that are no numbers.
    """
    if is_labelled(value, name):
        value = _aligned(value, name, like).values
    if isinstance(value, Tensor) or not hasattr(value, "__array__"):
        return as_numbers(name, value)
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, but found {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # What torch cannot share, or warns of, it gets a copy of.
    return torch.as_tensor(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())


def broadcast(value: Any, name: str, like: Any) -> Any:
    """A labelled array with the dimensions of another, a precision with one value per draw, say; else as it is."""
    if not (is_labelled(value, name) and is_labelled(like, name)):
        return value
    return _aligned(value, name, like).broadcast_like(like).transpose(*like.dims)


def _aligned(value: Any, name: str, like: Any) -> Any:
    """With its dimensions, and along them its labels, in the order of ``like``; by place where one has no labels."""
    if not is_labelled(like, name):
        return value
    unknown = [d for d in value.dims if d not in like.dims]
    if unknown:
        raise ValueError(
            f"{name} has dimensions {', '.join(map(str, value.dims))}, of which {', '.join(map(str, unknown))} is none "
            f"of those it is compared with, {', '.join(map(str, like.dims))}: rename or select it"
        )
    for d in value.dims:
        ours, theirs = value.indexes.get(d), like.indexes.get(d)
        if ours is None or theirs is None or ours.equals(theirs):
            continue
        if not (ours.is_unique and theirs.is_unique):
            raise ValueError(f"{name} cannot be matched along {d}, where labels occur twice in different orders")
        differing = ours.symmetric_difference(theirs).tolist()
        if differing:
            raise ValueError(
                f"{name} must have the labels of what it is compared with along {d}, but found {len(differing)} that "
                f"only one of them has, {differing[:5]}: select common ones, or drop the coordinate to match by place"
            )
        value = value.isel({d: ours.get_indexer(theirs)})
    return value.transpose(*[d for d in like.dims if d in value.dims])


def check_finite(**named: Tensor) -> None:
    for name, value in named.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} has {int((~torch.isfinite(value)).sum())} NaN or infinite entries")


def is_labelled(value: Any, name: str) -> bool:
    if hasattr(value, "data_vars"):
        variables = ", ".join(map(str, value.data_vars))
        raise TypeError(
            f"{name} must be one array, but found a {type(value).__name__} with variables {variables}: take one of them"
        )
    return hasattr(value, "dims") and hasattr(value, "values")
