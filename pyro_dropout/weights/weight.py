"""The masked weight: a draw from a dropout posterior, kept as (loc, mask) and never as their dense product.

First in the chain weight → distributions → guides → losses; what layers do with it stands in ``layers``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_dropout.weights._linear import LAYERS


class MaskedUnits(NamedTuple):
    """Which units of a weight one mask entry switches on or off.

    :param event_dim: number of dimensions of one weight (2 for linear, 2 + space for convolutions).
    :param dim: the event dimension, counted from the left, that holds the input units: 1 for linear
        layers and convolutions, 0 for transposed convolutions.
    :param groups: groups of a convolution; its input channels are ``groups * event_shape[1]``.

    Example::

        >>> MaskedUnits(event_dim=4).count((64, 3, 5, 5))  # a Conv2d(3, 64, 5)
        3
    """

    event_dim: int = 2
    dim: int = 1
    groups: int = 1

    def count(self, event_shape: tuple[int, ...]) -> int:
        """Number of masked units of a weight of this event shape."""
        return event_shape[self.dim] * self.groups

    def spread(self, per_unit: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """Lays ``[*batch, 1 or units]`` out so that it broadcasts against ``[*batch, *event_shape]``."""
        batch, units = per_unit.shape[:-1], per_unit.shape[-1]
        if units == 1 or self.groups == 1:
            shape = [1] * self.event_dim
            shape[self.dim] = units
            return per_unit.reshape(*batch, *shape)
        rows = per_unit.reshape(*batch, self.groups, -1).repeat_interleave(event_shape[0] // self.groups, dim=-2)
        return rows.reshape(*rows.shape, *(1,) * (self.event_dim - 2))


class DrawsMasks(Protocol):
    """What a :class:`DatumMask` needs of a mask distribution."""

    @property
    def batch_shape(self) -> torch.Size: ...
    def expand(self, batch_shape: tuple[int, ...]) -> DrawsMasks: ...
    def __call__(self) -> Tensor: ...


class DatumMask:
    """A mask per datum that is not drawn yet: the layer that sees the data draws it.

    A layer that is called twice with batches of one shape uses one mask.

    :param distribution: the mask distribution; its batch shape is that of the plates around the weight.
    """

    def __init__(self, distribution: DrawsMasks) -> None:
        self.distribution = distribution
        self.draws: dict[tuple[int, ...], Tensor] = {}
        self.entries: dict[int, DatumMask] = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a mask per datum is not drawn yet and has no {name!r}: a guide that computes with its masks needs "
            'masks="draw" in the loss'
        )

    def entry(self, index: int) -> DatumMask:
        """The mask of one entry of the plates, the same for every call; all entries are drawn at once."""
        if index not in self.entries:
            self.entries[index] = DatumMask(_EntryOf(self, index))
        return self.entries[index]

    def relaid(self, batch_shape: torch.Size) -> DatumMask:
        """The same mask in plates of another shape; what is drawn stays drawn."""
        new = DatumMask(self.distribution.expand(batch_shape))
        if batch_shape.numel() == self.distribution.batch_shape.numel():
            new.draws, new.entries = self.draws, self.entries
        return new

    def draw(self, batch_shape: tuple[int, ...]) -> Tensor:
        """The mask of shape ``[*batch_shape, units]``."""
        if batch_shape not in self.draws:
            self.draws[batch_shape] = self.distribution.expand(batch_shape)()
        return self.draws[batch_shape]


class _EntryOf:
    """One entry of a mask in a plate, as a distribution."""

    def __init__(self, parent: DatumMask, index: int, batch_shape: tuple[int, ...] = ()) -> None:
        self.parent, self.index, self.batch_shape = parent, index, torch.Size(batch_shape)

    def expand(self, batch_shape: tuple[int, ...]) -> _EntryOf:
        return _EntryOf(self.parent, self.index, batch_shape)

    def __call__(self) -> Tensor:
        return self.parent.draw((*self.parent.distribution.batch_shape, *self.batch_shape))[self.index]


class MaskedWeight(torch.Tensor):
    r"""A weight with some of its input units dropped, as a structured tensor:

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / \mathrm{keep}

    MC section 3, in PyTorch's inverted scaling (``loc = E[W]``; MC's M is ``loc / keep``).
    ``F.linear`` and the convolutions, plain and transposed, mask their *input* and use ``loc`` as it is.
    Stacking, indexing, reshaping and expanding batch dimensions, ``detach``, ``to`` and ``clone`` keep the
    structure. Any other operation sees the dense tensor; an in-place one raises.

    Batch dimensions stand on the left, as in Pyro. The last one, if its size is 1, is the place of the data;
    weights of batch shape ``[S]`` or ``[S, 1]`` and an input ``[N, in]`` give an output ``[S, N, out]``.

    :param loc: mean weight, ``[*batch, *event]``.
    :param mask: ``[*batch, units]``, or a :class:`DatumMask`.
    :param keep: probability of keeping a unit, ``[*batch, 1]`` or ``[*batch, units]``, in (0, 1].
    :param units: which units are masked.
    :param site: name of the sample site, for error messages.

    Example::

        >>> loc, z = torch.ones(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # three draws
        >>> w = MaskedWeight(loc, z, keep=torch.tensor([0.5]))
        >>> w.shape
        torch.Size([3, 1, 2])
        >>> torch.nn.functional.linear(torch.tensor([[1.0, 10.0]]), w).flatten()
        tensor([ 2., 20., 22.])
    """

    loc: Tensor
    mask: Tensor | DatumMask
    keep: Tensor
    units: MaskedUnits
    site: str
    lead: tuple[int, ...]
    batch_shape: torch.Size
    event_shape: torch.Size

    @staticmethod
    def __new__(
        cls,
        loc: Tensor,
        mask: Tensor | DatumMask,
        keep: Tensor,
        units: MaskedUnits = MaskedUnits(),
        site: str = "",
        lead: tuple[int, ...] = (),
    ) -> MaskedWeight:
        event = loc.shape[loc.dim() - units.event_dim :]
        count = units.count(event)
        if isinstance(mask, DatumMask):
            mask_batch = mask.distribution.batch_shape
        else:
            mask_batch = mask.shape[:-1]
            if mask.shape[-1:] != (count,):
                raise ValueError(
                    f"the mask of weight {site!r} has shape {tuple(mask.shape)}, but a weight of shape "
                    f"{tuple(event)} has {count} masked units; its last dimension must be {count}"
                )
        batch = loc.shape[: loc.dim() - units.event_dim]
        if batch or keep.dim() > 1:
            batch = torch.broadcast_shapes(batch, mask_batch, keep.shape[:-1])
        else:
            batch = mask_batch
        # One element, expanded: shape, dtype and device are a tensor's own, and no memory holds the product.
        self = loc.new_empty(()).expand(batch + event).as_subclass(cls)
        self.loc, self.mask, self.keep, self.units, self.site, self.lead = loc, mask, keep, units, site, lead
        self.batch_shape, self.event_shape = batch, event
        return self

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        drawn = isinstance(self.mask, Tensor) and self.mask.requires_grad
        return self.loc.requires_grad or drawn or self.keep.requires_grad

    def replace(self, **changes: Any) -> MaskedWeight:
        """The same weight with some of ``loc``, ``mask``, ``keep``, ``site``, ``lead`` replaced."""
        return MaskedWeight(**{key: changes.get(key, getattr(self, key)) for key in _FIELDS})

    def dense(self) -> Tensor:
        """The product ``loc · diag(z) / keep`` as an ordinary tensor ``[*batch, *event]``."""
        if isinstance(self.mask, DatumMask):
            raise NotImplementedError(
                f"weight {self.site!r} has one mask per datum, but this operation needs the dense weight: only linear "
                "layers, and convolutions whose input channels are masked, take a mask per datum; use "
                'masks="draw" in the loss, or (transposed or grouped convolutions that BayesianModule does not make) '
                'say which units to mask with pyro.sample(..., infer={"masked_units": MaskedUnits(...)})'
            )
        return (self.loc * self.units.spread(self.mask / self.keep, self.event_shape)).expand(self.shape)

    def mask_input(self, x: Tensor, space: int = 0) -> Tensor:
        """``x · z / keep`` for a layer's input ``x`` of shape ``[*batch, units, *space]``.

        With ``lead`` (set by :class:`~pyro_dropout.BayesianModule`) the first dimension of ``x`` holds these
        merged batch dimensions, and comes back split.
        """
        self.check_input(x, space)
        if self.lead:
            x = x.unflatten(0, self.lead)
        batch = x.shape[: x.dim() - 1 - space]
        if not isinstance(self.mask, DatumMask):
            return x * self.align(self.mask / self.keep, batch, space)
        z = self.mask.draw(self._datum_shape(batch))
        ties = len(batch) - z.dim() + 1  # one mask for all further dimensions of a datum (time)
        z = z.reshape(*z.shape[:-1], *(1,) * ties, z.shape[-1], *(1,) * space)
        return x * (z * self.align(self.keep.reciprocal(), batch, space))

    def _datum_shape(self, batch: torch.Size) -> tuple[int, ...]:
        if not self.batch_shape:
            return (*batch[:1], *(1,) * (len(self.lead) - 1))
        if self.lead:
            return self.lead
        plates = self.batch_shape if self.batch_shape[-1] == 1 else self.batch_shape + (1,)
        return tuple(torch.broadcast_shapes(plates, batch))

    def align(self, part: Tensor, batch: torch.Size, space: int = 0, event_dim: int = 1) -> Tensor:
        """Inserts the dimensions that make ``[*plates, *event]`` broadcast against an input's batch dimensions."""
        plates = part.shape[: part.dim() - event_dim]
        gap = 0
        if plates and batch:
            gap = len(batch) - len(self.lead) if self.lead else 0
            gap += (self.batch_shape or plates)[-1] != 1  # the place of the data
        if not gap and not space:
            return part
        return part.reshape(*plates, *(1,) * gap, *part.shape[len(plates) :], *(1,) * space)

    def check_input(self, x: Tensor, space: int = 0) -> None:
        count = self.units.count(self.event_shape)
        found = x.shape[x.dim() - 1 - space] if x.dim() > space else None
        if found != count:
            raise ValueError(
                f"weight {self.site!r} masks {count} input units, but the layer's input has shape {tuple(x.shape)}"
                + ("; if BayesianModule took too few dimensions for one datum, give it event_dim" if self.lead else "")
            )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"MaskedWeight({self.site!r}, shape={tuple(self.shape)}, loc={self.loc!r}, mask={self.mask!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return MaskedWeight, tuple(getattr(self, key) for key in _FIELDS)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        structured = _BATCH_OPERATIONS.get(func)
        if structured is None and isinstance(args[1] if len(args) > 1 else kwargs.get("weight"), MaskedWeight):
            structured = LAYERS.get(func)
        if structured is not None:
            result = structured(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            raise TypeError(
                f"{name} would change a masked weight in place, which holds no dense values; "
                "change its loc or mask, or call .dense() first"
            )
        dense = tree_map(lambda a: a.dense() if isinstance(a, MaskedWeight) else a, (args, kwargs))
        return func(*dense[0], **dense[1])


_FIELDS = ("loc", "mask", "keep", "units", "site", "lead")
_METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_sparse", "is_quantized", "is_meta")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "ndimension", "numel", "nelement", "__len__", "__hash__", "is_floating_point")
    + ("is_complex", "element_size", "get_device")
}


# Batch operations, applied to the mask (and to loc and keep where they have batch dimensions of their own).


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
        parts = [getattr(w, field) for w in tensors]
        if field != "mask" and all(_same_memory(p, parts[0]) for p in parts):
            own = parts[0].dim() - event_dim  # batch dimensions of its own: the new one is broadcast
            left = dim - (len(first.batch_shape) - own)
            return parts[0].unsqueeze(left) if own and left > 0 else parts[0]
        return torch.stack([p.expand(*first.batch_shape, *p.shape[p.dim() - event_dim :]) for p in parts], dim)

    return first.replace(mask=join("mask", 1), loc=join("loc", first.units.event_dim), keep=join("keep", 1))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.grad_fn is b.grad_fn


def _getitem(weight: Tensor, index: Any) -> Any:
    if not isinstance(weight, MaskedWeight):
        return NotImplemented
    key = index if isinstance(index, tuple) else (index,)
    basic = all(k is None or (isinstance(k, int | slice) and not isinstance(k, bool)) for k in key)
    draws = len(key) == 1 and isinstance(key[0], Tensor) and key[0].dtype == torch.long
    if not (basic or draws) or sum(k is not None for k in key) > len(weight.batch_shape):
        return NotImplemented
    taken = _map_batch(weight, lambda t, _: t[index])
    if isinstance(weight.mask, DatumMask) and isinstance(index, int):
        taken = taken.replace(mask=weight.mask.entry(index))
    return taken


def _sizes(shape: tuple[Any, ...]) -> tuple[int, ...] | None:
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    return shape if all(isinstance(size, int) for size in shape) else None


def _reshape(weight: Any, *shape: Any) -> Any:
    target, event = _sizes(shape), weight.event_shape
    if target is None or len(target) < len(event) or target[len(target) - len(event) :] != tuple(event):
        return NotImplemented
    batch = target[: len(target) - len(event)]
    if batch == tuple(weight.batch_shape):
        return weight
    return _map_batch(weight, lambda t, event_dim: t.reshape(*batch, *t.shape[t.dim() - event_dim :]))


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


def _unsqueeze(weight: Any, dim: int) -> Any:
    dim = dim if dim >= 0 else dim + weight.dim() + 1
    if dim > len(weight.batch_shape):
        return NotImplemented
    return _map_batch(weight, lambda t, _: t.unsqueeze(dim))


def _squeeze(weight: Any, dim: Any = None) -> Any:
    if not isinstance(dim, int):
        return NotImplemented
    dim = dim if dim >= 0 else dim + weight.dim()
    if dim >= len(weight.batch_shape):
        return NotImplemented
    return _map_batch(weight, lambda t, _: t.squeeze(dim))


def _each_tensor(method: Callable) -> Callable:
    """detach, to, clone, ...: the same call on every part."""

    def call(weight: MaskedWeight, *args: Any, **kwargs: Any) -> MaskedWeight:
        mask = weight.mask
        if isinstance(mask, Tensor):
            mask = method(mask, *args, **kwargs)
        return weight.replace(
            loc=method(weight.loc, *args, **kwargs), mask=mask, keep=method(weight.keep, *args, **kwargs)
        )

    return call


_BATCH_OPERATIONS: dict[Any, Callable] = {
    torch.stack: _stack,
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.reshape: _reshape,
    torch.reshape: _reshape,
    torch.Tensor.view: _reshape,
    torch.Tensor.expand: _expand,
    torch.Tensor.unsqueeze: _unsqueeze,
    torch.unsqueeze: _unsqueeze,
    torch.Tensor.squeeze: _squeeze,
    torch.squeeze: _squeeze,
} | {
    getattr(torch.Tensor, name): _each_tensor(getattr(torch.Tensor, name))
    for name in ("detach", "to", "clone", "cpu", "cuda", "float", "double", "half", "bfloat16", "contiguous")
}
