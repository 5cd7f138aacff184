"""The point mass at a masked weight: what a guide samples a weight site from, given its mask."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_dropout._checks import check_tensors, said
from pyro_dropout.weights.weight import MaskedWeight


class MaskedDelta(TorchDistribution):
    """The point mass at one masked weight: what a guide samples a weight site from, given its mask.

    :param weight: a :class:`~pyro_dropout.weights.weight.MaskedWeight`.
    :param relaxed: whether its mask is relaxed.

    Example::

        >>> w = MaskedWeight(torch.ones(2, 3), torch.ones(3), keep=torch.tensor([0.9]))
        >>> MaskedDelta(w)() is w
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, weight: MaskedWeight, relaxed: bool = False) -> None:
        if not isinstance(weight, MaskedWeight):
            raise TypeError(f"weight must be a MaskedWeight, but found {said(weight)}")
        self.weight, self.relaxed = weight, relaxed
        super().__init__(weight.batch_shape, weight.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaskedDelta:
        weight: Any = self.weight.expand(*batch_shape, *self.event_shape)
        return MaskedDelta(weight, self.relaxed)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.weight.expand(*sample_shape, *self.weight.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if isinstance(value, MaskedWeight) and _same_draw(value, self.weight):
            return self.weight.loc.new_zeros(self.batch_shape)
        check_tensors(value=value)
        if value.shape[-len(self.event_shape) :] != self.event_shape:
            raise ValueError(f"value must be [..., {', '.join(map(str, self.event_shape))}], but found {said(value)}")
        equal = (value == self.weight).flatten(-len(self.event_shape)).all(-1)
        return equal.to(self.weight.dtype).log()


def _same_draw(a: MaskedWeight, b: MaskedWeight) -> bool:
    masks = zip(a.switches, b.switches, strict=False)
    return a.loc is b.loc and len(a.switches) == len(b.switches) and all(x.mask is y.mask for x, y in masks)
