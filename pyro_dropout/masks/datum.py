"""A mask for each datum, which the layer that sees the data draws."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_dropout._checks import check_counts, check_tensors, checked_shape, said
from pyro_dropout._values import is_traced


class _Source(Protocol):
    """What a :class:`DatumMask` needs of a mask distribution."""

    @property
    def batch_shape(self) -> torch.Size: ...
    def expand(self, batch_shape: tuple[int, ...]) -> _Source: ...
    def __call__(self) -> Tensor: ...


class DatumMask:
    """A mask per datum that is not drawn yet: the layer that sees the data draws it.

    A layer that is called twice with batches of one shape uses one mask.

    :param distribution: the mask distribution; its batch shape is that of the plates around the weight.

    Example::

        >>> from pyro_dropout.masks import BernoulliMask
        >>> mask = DatumMask(BernoulliMask(rate=0.0, units=2))
        >>> mask.draw((3,))  # of a layer that sees three data
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """

    def __init__(self, distribution: _Source) -> None:
        if not hasattr(distribution, "batch_shape"):
            raise TypeError(f"distribution must be a mask's, but found {said(distribution)}")
        self.distribution = distribution
        self.draws: dict[tuple[int, ...], Tensor] = {}
        self.entries: dict[tuple[int, ...], DatumMask] = {}
        self.first_draws: dict[tuple[int, ...], Tensor] | None = None  # while it is rewound

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a mask per datum is not drawn yet and has no {name!r}: a guide that computes with its masks needs "
            'masks="draw" in the loss'
        )

    def __mul__(self, other: Any) -> Any:
        raise ValueError(
            "a mask of the guide is multiplied with data, as in a network of its own, whose latents are a mixture over "
            'masks: use SemiImplicitDropout_ELBO (of weights that are computed with it: masks="draw" in the loss)'
        )

    __rmul__ = __mul__

    def entry(self, index: tuple[int, ...]) -> DatumMask:
        """The mask of one entry of the (leftmost) plates, the same for every call; all entries are drawn at once."""
        if index not in self.entries:
            others = self.distribution.batch_shape[len(index) :]
            self.entries[index] = DatumMask(_EntryOf(self, index, others))
        return self.entries[index]

    def relaid(self, batch_shape: torch.Size) -> DatumMask:
        """The same mask in plates of another shape; what is drawn stays drawn."""
        new = DatumMask(self.distribution.expand(batch_shape))
        if batch_shape.numel() == self.distribution.batch_shape.numel():
            new.draws, new.entries = self.draws, self.entries
        return new

    def draw(self, batch_shape: tuple[int, ...]) -> Tensor:
        """The mask of shape ``[*batch_shape, units]``."""
        if not isinstance(batch_shape, tuple):
            raise TypeError(f"batch_shape must be a tuple of sizes, but found {said(batch_shape)}")
        if batch_shape not in self.draws:
            self.draws[batch_shape] = self.distribution.expand(batch_shape)()
            if self.first_draws is not None:
                self._check_again(batch_shape)
        return self.draws[batch_shape]

    def rewind(self, draws: dict[tuple[int, ...], Tensor]) -> None:
        """Only these draws have been made: the others are made again, by layers that run again in a backward pass."""
        self.resume()
        self.first_draws, self.draws = self.draws, dict(draws)

    def resume(self) -> None:
        """All draws have been made that were made before it was rewound."""
        if self.first_draws is not None:
            self.draws, self.first_draws = self.first_draws, None

    def _check_again(self, batch_shape: tuple[int, ...]) -> None:
        first = (self.first_draws or {}).get(batch_shape)
        if isinstance(self.distribution, _EntryOf) or is_traced() or first is None:
            why = "is drawn again, in a backward pass in which that cannot be done"
        elif torch.equal(first, self.draws[batch_shape]):
            return
        else:
            why = "differs when a layer runs again in the backward pass: checkpoint with preserve_rng_state=True"
        raise NotImplementedError(f'a mask per datum {why}; or use masks="draw" in the loss')


class LeafSource:
    """Masks that are leaves, with real numbers that no unit is dropped by: how gradients at masks are looked at.

    Example::

        >>> leaves = LeafSource()
        >>> mask = DatumMask(leaves.of(units=2, like=torch.zeros(1)))
        >>> mask.draw((3,)).requires_grad, leaves.leaves[0].shape
        (True, torch.Size([3, 2]))
    """

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []

    def of(self, units: int, like: Tensor, batch_shape: tuple[int, ...] = (), kept: Tensor | None = None) -> _Leaf:
        """The source of one weight's masks, of the dtype and on the device of ``like``.

        :param kept: units whose mask is always 1, ``[*batch_shape, 1 or units]``.
        """
        check_counts(units=units)
        check_tensors(like=like)
        return _Leaf(self, units, like, checked_shape("batch_shape", batch_shape), kept)


class _Leaf(NamedTuple):
    source: LeafSource
    units: int
    like: Tensor
    batch_shape: torch.Size
    kept: Tensor | None

    def expand(self, batch_shape: tuple[int, ...]) -> _Leaf:
        return self._replace(batch_shape=torch.Size(batch_shape))

    def __call__(self) -> Tensor:
        z = torch.rand((*self.batch_shape, self.units), dtype=self.like.dtype, device=self.like.device)
        self.source.leaves.append(leaf := z.mul_(0.5).add_(0.5).requires_grad_())
        return leaf if self.kept is None else torch.where(self.kept, 1.0, leaf)


class _EntryOf:
    """One entry of a mask in plates, as a distribution."""

    def __init__(self, whole: DatumMask, index: tuple[int, ...], batch_shape: tuple[int, ...]) -> None:
        self.whole, self.index, self.batch_shape = whole, index, torch.Size(batch_shape)

    def expand(self, batch_shape: tuple[int, ...]) -> _EntryOf:
        return _EntryOf(self.whole, self.index, batch_shape)

    def __call__(self) -> Tensor:
        plates = self.whole.distribution.batch_shape[: len(self.index)]
        return self.whole.draw((*plates, *self.batch_shape))[self.index]
