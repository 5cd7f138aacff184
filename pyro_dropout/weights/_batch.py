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
from pyro_dropout.weights.units import MaskedUnits
from pyro_dropout.weights.weight import MaskedWeight, Switch, implements


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

    def of_switch(switch: Switch) -> Switch:
        keep = each(switch.keep, 1)
        if isinstance(switch.mask, Tensor):
            mask: Any = operate(switch.mask.expand(*batch, switch.mask.shape[-1]), 1)
        elif keep.dim() == 1:
            mask = switch.mask.relaid(operate(keep.expand(*batch, keep.shape[-1]), 1).shape[:-1])
        else:
            raise NotImplementedError(
                f"weight {weight.site!r} has a mask per datum and rates per plate entry, which cannot be taken apart: "
                'use masks="draw"'
            )
        return switch._replace(mask=mask, keep=keep)

    return weight.with_switches(of_switch, loc=each(weight.loc, weight.units.event_dim))


@implements(torch.stack)
def _stack(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    first = tensors[0]
    if kwargs or not all(
        isinstance(w, MaskedWeight) and w.shape == first.shape and _units(w) == _units(first) for w in tensors
    ):
        return NotImplemented
    dim = dim if dim >= 0 else dim + first.dim() + 1
    if dim > len(first.batch_shape) or any(w.per_datum for w in tensors):
        return NotImplemented

    def stacked(fields: list[Tensor], event_dim: int) -> Tensor:
        return torch.stack([t.expand(*first.batch_shape, *t.shape[t.dim() - event_dim :]) for t in fields], dim)

    def join(fields: list[Tensor], event_dim: int) -> Tensor:
        if not all(_same_memory(t, fields[0]) for t in fields):
            return stacked(fields, event_dim)
        batch = fields[0].dim() - event_dim  # dimensions that are not broadcast: the new one is
        left = dim - (len(first.batch_shape) - batch)
        return fields[0].unsqueeze(left) if batch and left > 0 else fields[0]

    switches = iter(zip(*(w.switches for w in tensors), strict=True))

    def of_switch(switch: Switch) -> Switch:
        same: Any = next(switches)
        return switch._replace(mask=stacked([s.mask for s in same], 1), keep=join([s.keep for s in same], 1))

    loc = join([w.loc for w in tensors], first.units.event_dim)
    return first.with_switches(of_switch, loc=loc, masked=any(w.masked for w in tensors))


def _units(weight: MaskedWeight) -> list[MaskedUnits]:
    return [switch.units for switch in weight.switches]


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
    if weight.per_datum and all(type(k) is int for k in key):
        whole = iter(weight.switches)
        taken = taken.with_switches(lambda s: _entry(s, next(whole), key))
    return taken


def _entry(taken: Switch, whole: Switch, index: tuple[int, ...]) -> Switch:
    return taken._replace(mask=whole.mask.entry(index)) if isinstance(whole.mask, DatumMask) else taken


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

    def of_switch(switch: Switch) -> Switch:
        mask = switch.mask
        if isinstance(mask, DatumMask):
            return switch._replace(mask=mask.relaid(torch.Size(batch)))
        return switch._replace(mask=mask.expand(*batch, mask.shape[-1]))

    return weight.with_switches(of_switch)


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
        def of_switch(switch: Switch) -> Switch:
            mask = method(switch.mask, *args, **kwargs) if isinstance(switch.mask, Tensor) else switch.mask
            return switch._replace(mask=mask, keep=method(switch.keep, *args, **kwargs))

        return weight.with_switches(of_switch, loc=method(weight.loc, *args, **kwargs))

    return call


for _name in ("detach", "to", "clone", "cpu", "cuda", "float", "double", "half", "bfloat16", "contiguous"):
    implements(getattr(torch.Tensor, _name))(_each_tensor(getattr(torch.Tensor, _name)))
