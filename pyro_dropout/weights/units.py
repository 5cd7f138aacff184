"""Which units of a weight a mask switches."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_dropout._checks import check_counts


class _Units(NamedTuple):
    event_dim: int = 2
    dim: int = 1
    groups: int = 1


class MaskedUnits(_Units):
    """Which units of a weight one mask entry switches on or off.

    :param event_dim: number of dimensions of one weight (2 for linear, 2 + space for convolutions).
    :param dim: the event dimension, counted from the left, that holds the input units: 1 for linear
        layers and convolutions, 0 for transposed convolutions.
    :param groups: groups of a convolution; its input channels are ``groups * event_shape[1]``.
    :raises ValueError: a dimension that a weight has not.

    Example::

        >>> MaskedUnits(event_dim=4).count((64, 3, 5, 5))  # a Conv2d(3, 64, 5)
        3
    """

    __slots__ = ()

    def __new__(cls, event_dim: int = 2, dim: int = 1, groups: int = 1) -> MaskedUnits:
        check_counts(event_dim=event_dim, groups=groups)
        check_counts(least=-event_dim, dim=dim)
        if dim >= event_dim:
            raise ValueError(f"dim must be one of {event_dim} event dimensions, counted from 0, but found {dim}")
        return super().__new__(cls, event_dim, dim % event_dim, groups)

    def count(self, event_shape: tuple[int, ...]) -> int:
        """Number of masked units of a weight of this event shape."""
        try:
            return event_shape[self.dim] * self.groups
        except (TypeError, IndexError) as error:
            raise ValueError(f"event_shape must have {self.event_dim} dimensions, but found {event_shape!r}") from error

    def spread(self, per_unit: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """Lays ``[*batch, 1 or units]`` out so that it broadcasts against ``[*batch, *event_shape]``."""
        batch, units = per_unit.shape[:-1], per_unit.shape[-1]
        if units == 1 or self.groups == 1:
            shape = [1] * self.event_dim
            shape[self.dim] = units
            return per_unit.reshape(*batch, *shape)
        rows = per_unit.reshape(*batch, self.groups, -1).repeat_interleave(event_shape[0] // self.groups, dim=-2)
        return rows.reshape(*rows.shape, *(1,) * (self.event_dim - 2))
