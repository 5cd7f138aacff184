"""The masked weight: a draw from a dropout posterior, kept as (loc, mask) and never as their dense product.

What PyTorch's functions do with it is registered with ``implements``: layers in ``_linear``, ``_convolution`` and
``_recurrent``, batch operations in ``_batch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_dropout._checks import check_functions, check_tensors, said
from pyro_dropout.masks.datum import DatumMask
from pyro_dropout.weights.shapes import BatchDims
from pyro_dropout.weights.units import MaskedUnits


class Switch(NamedTuple):
    """A mask of a weight, and which of its units it switches.

    :param mask: ``[*batch, entries]``, or a :class:`~pyro_dropout.masks.DatumMask`.
    :param keep: probability of keeping a unit, ``[*batch, 1]`` or ``[*batch, entries]``, in (0, 1].
    :param units: which units of the weight are masked.
    :param name: of the mask's site, without ``.mask``.

    Example::

        >>> outputs = Switch(torch.tensor([1.0, 0.0]), torch.tensor([0.5]), MaskedUnits(dim=0))
        >>> MaskedWeight(torch.ones(2, 3), torch.ones(3), torch.tensor([0.5]), other=outputs).dense()
        tensor([[4., 4., 4.],
                [0., 0., 0.]])
    """

    mask: Tensor | DatumMask
    keep: Tensor
    units: MaskedUnits
    name: str = ""

    @property
    def batch_shape(self) -> torch.Size:
        """Of the mask."""
        return self.mask.distribution.batch_shape if isinstance(self.mask, DatumMask) else self.mask.shape[:-1]

    def check(self, site: str, event: torch.Size) -> None:
        """Raises where mask and keep are not for the units of this weight."""
        if not (isinstance(self.keep, Tensor) and isinstance(self.units, MaskedUnits)):
            check_tensors(keep=self.keep)
            raise TypeError(f"units must be MaskedUnits, but found {said(self.units)}")
        count = self.units.count(event)
        if not isinstance(self.mask, DatumMask):
            check_tensors(mask=self.mask)
            if self.mask.shape[-1:] != (count,):
                raise ValueError(
                    f"the mask of weight {site!r} has shape {tuple(self.mask.shape)}, but a weight of shape "
                    f"{tuple(event)} has {count} masked units; its last dimension must be {count}"
                )
        if self.keep.dim() == 0 or self.keep.shape[-1] not in (1, count):
            raise ValueError(f"keep must be [..., 1] or [..., {count}], but found shape {tuple(self.keep.shape)}")


class MaskedWeight(torch.Tensor):
    r"""A weight with some of its units dropped, as a structured tensor. Of input units, or of output units,

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / \mathrm{keep}, \qquad
        W = \mathrm{diag}(z) \cdot \mathrm{loc} / \mathrm{keep}

    the first as in MC section 3, the second as where dropout stands behind a layer (LBD); or of both, by two masks. The
    scaling is PyTorch's inverted one (``loc = E[W]``; MC's M is ``loc / keep``).
    ``F.linear``, the convolutions, plain and transposed, and recurrent layers mask their *input* (and their state),
    or all but the last what they return, and use ``loc`` as it is. Embeddings and normalisation layers, and biases with
    the mask of their weight, have output units.
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
    :param other: a second mask, of other units.
    :param mask_name: of the first mask's site, without ``.mask``; that of the weight by default.

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
    other: Switch | None
    mask_name: str
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
        other: Switch | None = None,
        mask_name: str = "",
    ) -> MaskedWeight:
        if not (isinstance(loc, Tensor) and isinstance(keep, Tensor) and isinstance(units, MaskedUnits)):
            check_tensors(loc=loc, keep=keep)
            raise TypeError(f"units must be MaskedUnits, but found {said(units)}")
        if loc.dim() < units.event_dim or not (loc.is_floating_point() or loc.is_complex()):
            raise ValueError(f"loc must be of floating point with {units.event_dim} dimensions, but found {said(loc)}")
        event = loc.shape[loc.dim() - units.event_dim :]
        first = Switch(mask, keep, units, mask_name or site)
        first.check(site, event)
        batch = loc.shape[: loc.dim() - units.event_dim]
        if batch or keep.dim() > 1:
            batch = torch.broadcast_shapes(batch, first.batch_shape, keep.shape[:-1])
        else:
            batch = first.batch_shape
        if other is not None:
            _check_other(other, first, site, event)
            batch = torch.broadcast_shapes(batch, other.batch_shape, other.keep.shape[:-1])
        # One element, expanded: shape, dtype and device are a tensor's own, and no memory holds the product. It is NaN
        # for whatever of PyTorch's core reads it without asking ``__torch_function__``, as vmap does.
        self = loc.new_full((), math.nan).expand(batch + event).as_subclass(cls)
        self.loc, self.mask, self.keep, self.units, self.site, self.merged = loc, mask, keep, units, site, merged
        self.trunk, self.masked, self.other, self.mask_name = trunk, masked, other, first.name
        self.batch_shape, self.event_shape = batch, event
        return self

    @property
    def switches(self) -> tuple[Switch, ...]:
        """Its masks, each with its units."""
        first = Switch(self.mask, self.keep, self.units, self.mask_name)
        return (first,) if self.other is None else (first, self.other)

    def along(self, dim: int) -> Switch | None:
        """The mask of the units that are along an event dimension, counted from the left."""
        return next((switch for switch in self.switches if switch.units.dim == dim), None)

    @property
    def per_datum(self) -> bool:
        """Whether a mask is one for each datum, which the layer draws that sees the data."""
        return any(isinstance(switch.mask, DatumMask) for switch in self.switches)

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        drawn = (t for s in self.switches for t in (s.mask, s.keep) if isinstance(t, Tensor))
        return self.loc.requires_grad or any(t.requires_grad for t in drawn)

    def replace(self, **changes: Any) -> MaskedWeight:
        """The same weight with some of its arguments replaced."""
        if not changes.keys() <= _FIELDS.keys():
            raise TypeError(f"a masked weight has {', '.join(_FIELDS)}, but found {', '.join(changes)}")
        return MaskedWeight(**{key: changes.get(key, getattr(self, key)) for key in _FIELDS})

    def with_switches(self, change: Callable[[Switch], Switch], **changes: Any) -> MaskedWeight:
        """The same weight with each of its masks changed, and some of its arguments replaced."""
        first, *others = map(change, self.switches)
        other = others[0] if others else None
        return self.replace(
            mask=first.mask, keep=first.keep, units=first.units, mask_name=first.name, other=other, **changes
        )

    def dense(self) -> Tensor:
        """The product ``loc · diag(z) / keep`` as an ordinary tensor ``[*batch, *event]``."""
        if self.per_datum:
            raise NotImplementedError(
                f"weight {self.site!r} has one mask per datum, but this operation needs the dense weight: only linear "
                "and recurrent layers (not of packed sequences), convolutions whose channels are masked, and the "
                "outputs of embeddings and normalisation layers take a mask per datum, of a functional model "
                'F.linear(x, w) with a weight [out, in]. With masks="draw" in the loss any operation does; where a '
                "weight's input units are not its last dimension (x @ w with w [in, out], transposed or grouped "
                "convolutions), say which to mask: "
                'pyro.sample(..., infer={"masked_units": MaskedUnits(2, dim=0)})'
            )
        if not self.masked:
            return self.loc.expand(self.shape)
        dense = self.loc
        for mask, keep, units, _ in self.switches:
            assert isinstance(mask, Tensor)
            dense = dense * units.spread(mask / keep, self.event_shape)
        return dense.expand(self.shape)

    @property
    def dims(self) -> BatchDims:
        """How its batch dimensions stand to those of a layer's input."""
        return BatchDims(self.batch_shape, self.merged, self.trunk)

    def mask_input(self, x: Tensor, space: int = 0, inputs: Switch | None = None) -> Tensor:
        """``x · z / keep`` for a layer's input ``x`` of shape ``[*batch, units, *space]``.

        Where :class:`~pyro_dropout.BayesianModule` merged batch dimensions, they come back split.

        :param inputs: the mask of input units; the first one by default.
        """
        inputs = inputs or self.switches[0]
        self.check_input(x, space, inputs)
        dims = self.dims
        x = dims.split(x)
        batch = x.shape[: x.dim() - 1 - space]
        if self.masked:
            return x * self.factor(inputs, batch, space)
        mask: Any = inputs.mask
        return x.expand(torch.broadcast_shapes(x.shape, dims.align(mask, batch, space).shape))

    def factor(self, switch: Switch, batch: torch.Size, space: int = 0) -> Tensor:
        """``z / keep`` of a mask, as it multiplies what has units of it: ``[*batch, units, *space]``, or broadcasts so.

        :param batch: of a layer's input or output, split.
        """
        mask, keep, units, _ = switch
        dims = self.dims
        if not isinstance(mask, DatumMask):
            return dims.align(units.laid_out(mask / keep), batch, space)
        if dims.merged and not dims.plates:  # one mask for each first index: of draws that are not its own
            batch = torch.Size((*dims.merged, *batch[len(dims.merged) :]))
        z = units.laid_out(mask.draw(dims.of_masks(batch)))
        ties = len(batch) - z.dim() + 1  # one mask for all further dimensions of a datum (time)
        z = z.reshape(*z.shape[:-1], *(1,) * ties, z.shape[-1], *(1,) * space)
        return z * dims.align(units.laid_out(keep.reciprocal()), batch, space)

    def check_input(self, x: Tensor, space: int = 0, inputs: Switch | None = None) -> None:
        check_tensors(x=x)
        width = (inputs or self.switches[0]).units.width(self.event_shape)
        found = x.shape[x.dim() - 1 - space] if x.dim() > space else None
        if found != width:
            raise ValueError(
                f"weight {self.site!r} masks {width} input units, but the layer's input has shape {tuple(x.shape)}"
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


def _check_other(other: Any, first: Switch, site: str, event: torch.Size) -> None:
    if not isinstance(other, Switch):
        raise TypeError(f"other must be a Switch, a second mask, but found {said(other)}")
    other.check(site, event)
    if other.units.dim == first.units.dim or other.units.event_dim != first.units.event_dim:
        raise ValueError(
            f"the second mask of weight {site!r} must be of units along another dimension than the first, but found "
            f"{other.units} beside {first.units}"
        )


_FIELDS = dict.fromkeys(("loc", "mask", "keep", "units", "site", "merged", "trunk", "masked", "other", "mask_name"))
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
