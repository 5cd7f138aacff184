"""The masked weight: a draw from a dropout posterior, kept as (loc, mask) and never as their dense product.

What PyTorch's functions do with it is registered with ``implements``: layers in ``_linear``, ``_convolution`` and
``_recurrent``, batch operations in ``_batch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_dropout._checks import check_functions, check_tensors, said
from pyro_dropout.masks.datum import DatumMask
from pyro_dropout.weights.shapes import BatchDims
from pyro_dropout.weights.units import MaskedUnits


class MaskedWeight(torch.Tensor):
    r"""A weight with some of its input units dropped, as a structured tensor:

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / \mathrm{keep}

    MC section 3, in PyTorch's inverted scaling (``loc = E[W]``; MC's M is ``loc / keep``).
    ``F.linear``, the convolutions, plain and transposed, and recurrent layers mask their *input* (and their state)
    and use ``loc`` as it is.
    Stacking, indexing, reshaping and expanding batch dimensions, ``detach``, ``to`` and ``clone`` keep the
    structure. Any other operation sees the dense tensor; an in-place one raises.

    Batch dimensions stand on the left, as in Pyro. The last one, if its size is 1, is the place of the data;
    weights of batch shape ``[S]`` or ``[S, 1]`` and an input ``[N, in]`` give an output ``[S, N, out]``.

    :param loc: mean weight, ``[*batch, *event]``.
    :param mask: ``[*batch, units]``, or a :class:`DatumMask`.
    :param keep: probability of keeping a unit, ``[*batch, 1]`` or ``[*batch, units]``, in (0, 1].
    :param units: which units are masked.
    :param site: name of the sample site, for error messages.
    :param merged: sizes of the batch dimensions that its input has merged into the first; ``BayesianModule`` says so.
    :param trunk: number of these, the first ones, that an input before the first mask lacks.
    :param masked: False where no unit can be dropped, the rate being 0: layers then take ``loc`` as it is.

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
    merged: tuple[int, ...]
    trunk: int
    masked: bool
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
        merged: tuple[int, ...] = (),
        trunk: int = 0,
        masked: bool = True,
    ) -> MaskedWeight:
        if not (isinstance(loc, Tensor) and isinstance(keep, Tensor) and isinstance(units, MaskedUnits)):
            check_tensors(loc=loc, keep=keep)
            raise TypeError(f"units must be MaskedUnits, but found {said(units)}")
        if loc.dim() < units.event_dim or not (loc.is_floating_point() or loc.is_complex()):
            raise ValueError(f"loc must be of floating point with {units.event_dim} dimensions, but found {said(loc)}")
        event = loc.shape[loc.dim() - units.event_dim :]
        count = units.count(event)
        if isinstance(mask, DatumMask):
            mask_batch = mask.distribution.batch_shape
        else:
            check_tensors(mask=mask)
            mask_batch = mask.shape[:-1]
            if mask.shape[-1:] != (count,):
                raise ValueError(
                    f"the mask of weight {site!r} has shape {tuple(mask.shape)}, but a weight of shape "
                    f"{tuple(event)} has {count} masked units; its last dimension must be {count}"
                )
        if keep.dim() == 0 or keep.shape[-1] not in (1, count):
            raise ValueError(f"keep must be [..., 1] or [..., {count}], but found shape {tuple(keep.shape)}")
        batch = loc.shape[: loc.dim() - units.event_dim]
        if batch or keep.dim() > 1:
            batch = torch.broadcast_shapes(batch, mask_batch, keep.shape[:-1])
        else:
            batch = mask_batch
        # One element, expanded: shape, dtype and device are a tensor's own, and no memory holds the product. It is NaN
        # for whatever of PyTorch's core reads it without asking ``__torch_function__``, as vmap does.
        self = loc.new_full((), math.nan).expand(batch + event).as_subclass(cls)
        self.loc, self.mask, self.keep, self.units, self.site, self.merged = loc, mask, keep, units, site, merged
        self.trunk, self.masked, self.batch_shape, self.event_shape = trunk, masked, batch, event
        return self

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        drawn = isinstance(self.mask, Tensor) and self.mask.requires_grad
        return self.loc.requires_grad or drawn or self.keep.requires_grad

    def replace(self, **changes: Any) -> MaskedWeight:
        """The same weight with some of its arguments replaced."""
        if not changes.keys() <= _FIELDS.keys():
            raise TypeError(f"a masked weight has {', '.join(_FIELDS)}, but found {', '.join(changes)}")
        return MaskedWeight(**{key: changes.get(key, getattr(self, key)) for key in _FIELDS})

    def dense(self) -> Tensor:
        """The product ``loc · diag(z) / keep`` as an ordinary tensor ``[*batch, *event]``."""
        if isinstance(self.mask, DatumMask):
            raise NotImplementedError(
                f"weight {self.site!r} has one mask per datum, but this operation needs the dense weight: only linear "
                "and recurrent layers (not of packed sequences), and convolutions whose input channels are masked, "
                'take a mask per datum; use masks="draw" in the loss, or (transposed or grouped convolutions that '
                "BayesianModule does not make) say which units to mask with "
                'pyro.sample(..., infer={"masked_units": MaskedUnits(...)})'
            )
        if not self.masked:
            return self.loc.expand(self.shape)
        return (self.loc * self.units.spread(self.mask / self.keep, self.event_shape)).expand(self.shape)

    @property
    def dims(self) -> BatchDims:
        """How its batch dimensions stand to those of a layer's input."""
        return BatchDims(self.batch_shape, self.merged, self.trunk)

    def mask_input(self, x: Tensor, space: int = 0) -> Tensor:
        """``x · z / keep`` for a layer's input ``x`` of shape ``[*batch, units, *space]``.

        Where :class:`~pyro_dropout.BayesianModule` merged batch dimensions, they come back split.
        """
        self.check_input(x, space)
        dims = self.dims
        x = dims.split(x)
        batch = x.shape[: x.dim() - 1 - space]
        if not self.masked:
            mask: Any = self.mask
            return x.expand(torch.broadcast_shapes(x.shape, dims.align(mask, batch, space).shape))
        if not isinstance(self.mask, DatumMask):
            return x * dims.align(self.mask / self.keep, batch, space)
        if dims.merged and not dims.plates:  # one mask for each first index: of draws that are not its own
            x = dims.whole(x)
            batch = x.shape[: x.dim() - 1 - space]
        z = self.mask.draw(dims.of_masks(batch))
        ties = len(batch) - z.dim() + 1  # one mask for all further dimensions of a datum (time)
        z = z.reshape(*z.shape[:-1], *(1,) * ties, z.shape[-1], *(1,) * space)
        return x * (z * dims.align(self.keep.reciprocal(), batch, space))

    def check_input(self, x: Tensor, space: int = 0) -> None:
        check_tensors(x=x)
        count = self.units.count(self.event_shape)
        found = x.shape[x.dim() - 1 - space] if x.dim() > space else None
        if found != count:
            raise ValueError(
                f"weight {self.site!r} masks {count} input units, but the layer's input has shape {tuple(x.shape)}"
                + (
                    "; if BayesianModule took too few dimensions for one datum, give it event_dim"
                    if self.merged
                    else ""
                )
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
        structured = _OPERATIONS.get(func)
        if structured is not None:
            result = structured(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = getattr(func, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place and isinstance(args[0], MaskedWeight):  # else it is read
            raise TypeError(
                f"{name} would change a masked weight in place, which holds no dense values; "
                "change its loc or mask, or call .dense() first"
            )
        dense = tree_map(lambda a: a.dense() if isinstance(a, MaskedWeight) else a, (args, kwargs))
        return func(*dense[0], **dense[1])


_FIELDS = dict.fromkeys(("loc", "mask", "keep", "units", "site", "merged", "trunk", "masked"))
_METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_sparse", "is_quantized", "is_meta")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "ndimension", "numel", "nelement", "__len__", "__hash__", "is_floating_point")
    + ("is_complex", "element_size", "get_device")
}
_OPERATIONS: dict[Any, Callable] = {}  # by PyTorch's function what it is for masked weights


def implements(*functions: Any) -> Callable[[Callable], Callable]:
    """Registers what PyTorch's functions do with masked weights, in place of the dense tensor.

    A new layer or operation is one function. It is called with the arguments as they are, of which any may be a masked
    weight, and returns ``NotImplemented`` where it wants the dense tensor after all.

    :param functions: of PyTorch, such as ``torch.nn.functional.linear`` or ``torch.Tensor.expand``.
    :returns: a decorator.

    Example::

        >>> @implements(torch.nn.functional.bilinear)
        ... def bilinear(first, second, weight, bias=None):
        ...     return NotImplemented  # the dense weight, as without this
        >>> w = MaskedWeight(torch.ones(1, 2), torch.ones(2), keep=torch.ones(1))
        >>> torch.nn.functional.linear(torch.ones(3, 2), w).shape
        torch.Size([3, 1])
    """

    check_functions(**{f"functions[{i}]": function for i, function in enumerate(functions)})

    def register(operation: Callable) -> Callable:
        check_functions(operation=operation)
        for function in functions:
            _OPERATIONS[function] = operation
        return operation

    return register
