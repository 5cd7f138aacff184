"""Batch operations of masked weights: applied to the mask, and to loc and keep where these have batch dimensions.

They keep the structure: what stock Pyro does to samples (stacking draws, indexing and broadcasting plates) makes
masked weights of masked weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dropout.masks.datum import DatumMask
from pyro_dropout.weights.weight import MaskedWeight, implements


def _map_batch(weight: MaskedWeight, operate: Callable[[Tensor, int], Tensor]) -> MaskedWeight:
    """Applies ``operate(tensor, event_dim)`` to the mask and to whatever else has more than one batch entry."""
    batch = weight.batch_shape

    def each(t: Tensor, event_dim: int) -> Tensor:
        if t.dim() == event_dim:
            return t  # the very tensor: stacking recognises it
        event = t.shape[t.dim() - event_dim :]
        if t.numel() == event.numel():
            return t.reshape(event)
        return operate(t.expand(batch + event), event_dim)

    keep = each(weight.keep, 1)
    if isinstance(weight.mask, Tensor):
        mask: Any = operate(weight.mask.expand(*batch, weight.mask.shape[-1]), 1)
    elif keep.dim() == 1:
        shape = operate(keep.expand(*batch, keep.shape[-1]), 1).shape
        mask = weight.mask.relaid(shape[:-1])
    else:
        raise NotImplementedError(
            f"weight {weight.site!r} has a mask per datum and rates per plate entry, which cannot be taken apart: "
            'use masks="draw"'
        )
    return weight.replace(mask=mask, loc=each(weight.loc, weight.units.event_dim), keep=keep)


@implements(torch.stack)
def _stack(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    first = tensors[0]
    if kwargs or not all(
        isinstance(w, MaskedWeight) and w.shape == first.shape and w.units == first.units for w in tensors
    ):
        return NotImplemented
    dim = dim if dim >= 0 else dim + first.dim() + 1
    if dim > len(first.batch_shape) or any(isinstance(w.mask, DatumMask) for w in tensors):
        return NotImplemented

    def join(field: str, event_dim: int) -> Tensor:
        fields = [getattr(w, field) for w in tensors]
        if field != "mask" and all(_same_memory(t, fields[0]) for t in fields):
            batch = fields[0].dim() - event_dim  # dimensions that are not broadcast: the new one is
            left = dim - (len(first.batch_shape) - batch)
            return fields[0].unsqueeze(left) if batch and left > 0 else fields[0]
        return torch.stack([t.expand(*first.batch_shape, *t.shape[t.dim() - event_dim :]) for t in fields], dim)

    masked = any(w.masked for w in tensors)
    return first.replace(
        mask=join("mask", 1), loc=join("loc", first.units.event_dim), keep=join("keep", 1), masked=masked
    )


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.grad_fn is b.grad_fn


@implements(torch.Tensor.__getitem__)
def _getitem(weight: Tensor, index: Any) -> Any:
    if not isinstance(weight, MaskedWeight):
        return NotImplemented
    key = index if isinstance(index, tuple) else (index,)
    basic = all(k is None or (isinstance(k, int | slice) and not isinstance(k, bool)) for k in key)
    draws = len(key) == 1 and isinstance(key[0], Tensor) and key[0].dtype == torch.long
    if not (basic or draws) or sum(k is not None for k in key) > len(weight.batch_shape):
        return NotImplemented
    taken = _map_batch(weight, lambda t, _: t[index])
    if isinstance(weight.mask, DatumMask) and all(type(k) is int for k in key):
        taken = taken.replace(mask=weight.mask.entry(key))
    return taken


def _sizes(shape: tuple[Any, ...]) -> tuple[int, ...] | None:
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    return shape if all(isinstance(size, int) for size in shape) else None


@implements(torch.Tensor.reshape, torch.reshape, torch.Tensor.view)
def _reshape(weight: Any, *shape: Any) -> Any:
    target, event = _sizes(shape), weight.event_shape
    if target is None or len(target) < len(event) or target[len(target) - len(event) :] != tuple(event):
        return NotImplemented
    batch = target[: len(target) - len(event)]
    if batch == tuple(weight.batch_shape):
        return weight
    return _map_batch(weight, lambda t, event_dim: t.reshape(*batch, *t.shape[t.dim() - event_dim :]))


@implements(torch.Tensor.expand)
def _expand(weight: Any, *shape: Any) -> Any:
    target, event = _sizes(shape), weight.event_shape
    if target is None or len(target) < weight.dim():
        return NotImplemented
    if any(t not in (-1, e) for t, e in zip(target[len(target) - len(event) :], event, strict=True)):
        return NotImplemented
    batch = target[: len(target) - len(event)]
    if batch == tuple(weight.batch_shape):
        return weight
    if isinstance(weight.mask, DatumMask):
        return weight.replace(mask=weight.mask.relaid(torch.Size(batch)))
    return weight.replace(mask=weight.mask.expand(*batch, weight.mask.shape[-1]))


@implements(torch.Tensor.unsqueeze, torch.unsqueeze)
def _unsqueeze(weight: Any, dim: int) -> Any:
    dim = dim if dim >= 0 else dim + weight.dim() + 1
    if dim > len(weight.batch_shape):
        return NotImplemented
    return _map_batch(weight, lambda t, _: t.unsqueeze(dim))


@implements(torch.Tensor.squeeze, torch.squeeze)
def _squeeze(weight: Any, dim: Any = None) -> Any:
    if not isinstance(dim, int):
        return NotImplemented
    dim = dim if dim >= 0 else dim + weight.dim()
    if dim >= len(weight.batch_shape):
        return NotImplemented
    return _map_batch(weight, lambda t, _: t.squeeze(dim))


def _each_tensor(method: Callable) -> Callable:
    """detach, to, clone, ...: the same call on loc, mask and keep."""

    def call(weight: MaskedWeight, *args: Any, **kwargs: Any) -> MaskedWeight:
        mask = weight.mask
        if isinstance(mask, Tensor):
            mask = method(mask, *args, **kwargs)
        return weight.replace(
            loc=method(weight.loc, *args, **kwargs), mask=mask, keep=method(weight.keep, *args, **kwargs)
        )

    return call


for _name in ("detach", "to", "clone", "cpu", "cuda", "float", "double", "half", "bfloat16", "contiguous"):
    implements(getattr(torch.Tensor, _name))(_each_tensor(getattr(torch.Tensor, _name)))
