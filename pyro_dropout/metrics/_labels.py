"""Tensors of draws from whatever holds them: tensors, numpy arrays, labelled arrays of ArviZ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_DRAWS = ("chain", "draw", "sample")  # the names that ArviZ gives to draws


def from_draws(value: Any, name: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """``[draws, ...]``, and what gives a result ``[...]`` (or with fewer dimensions on the right) its labels back.

    Of an xarray ``DataArray`` chains and draws become one dimension; results of tensors stay tensors.
    """
    if not is_labelled(value):
        tensor = torch.as_tensor(value)
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
    tensor = as_tensor(value.transpose(*draws, *rest)).flatten(0, len(draws) - 1)
    one = value.isel({d: 0 for d in draws}, drop=True)

    def label(result: Tensor) -> Any:
        like = one.isel({d: 0 for d in rest[result.dim() :]}, drop=True)
        return like.copy(data=result.cpu().numpy())

    return tensor, label


def as_tensor(value: Any, like: Any = None) -> Tensor:
    """A tensor; of a labelled array with its dimensions in the order of those of ``like``."""
    if is_labelled(value):
        if is_labelled(like) and set(value.dims) <= set(like.dims):
            value = value.transpose(*[d for d in like.dims if d in value.dims])
        value = value.values if value.values.flags.writeable else value.values.copy()  # torch warns of the others
    return torch.as_tensor(value)


def broadcast(value: Any, like: Any) -> Any:
    """A labelled array with the dimensions of another, a precision with one value per draw, say; else as it is."""
    return value.broadcast_like(like).transpose(*like.dims) if is_labelled(like) else value


def check_finite(**named: Tensor) -> None:
    for name, value in named.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} has {int((~torch.isfinite(value)).sum())} NaN or infinite entries")


def is_labelled(value: Any) -> bool:
    return hasattr(value, "dims") and hasattr(value, "values")
