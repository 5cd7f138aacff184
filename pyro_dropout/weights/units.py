"""Which units of a weight a mask switches."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_dropout._checks import check_counts


class _Units(NamedTuple):
    event_dim: int = 2
    dim: int = 1
    groups: int = 1
    together: int = 1


class MaskedUnits(_Units):
    """Which units of a weight one mask entry switches on or off.

    :param event_dim: number of dimensions of one weight (2 for linear, 2 + space for convolutions, 1 for a bias).
    :param dim: the event dimension, counted from the left, that holds the units. Input units: 1 for linear layers and
        convolutions, 0 for transposed convolutions. Output units are the other of the two; of a bias 0.
    :param groups: of a convolution, where dimension 1 has the units of one group, as its input channels are
        ``groups * event_shape[1]`` (a transposed one's output channels).
    :param together: number of neighbouring units that have an entry of the mask in common; all of them in stochastic
        depth.
    :raises ValueError: a dimension that a weight has not; units that are not a multiple of ``together``.

    Example::

        >>> MaskedUnits(event_dim=4).count((64, 3, 5, 5))  # the input channels of a Conv2d(3, 64, 5)
        3
        >>> MaskedUnits(event_dim=4, dim=0).count((64, 3, 5, 5))  # its output channels
        64
    """

    __slots__ = ()

    def __new__(cls, event_dim: int = 2, dim: int = 1, groups: int = 1, together: int = 1) -> MaskedUnits:
        check_counts(event_dim=event_dim, groups=groups, together=together)
        check_counts(least=-event_dim, dim=dim)
        if dim >= event_dim:
            raise ValueError(f"dim must be one of {event_dim} event dimensions, counted from 0, but found {dim}")
        return super().__new__(cls, event_dim, dim % event_dim, groups, together)

    def width(self, event_shape: tuple[int, ...]) -> int:
        """Number of a layer's inputs, or outputs, that the entries of a mask are for."""
        try:
            return event_shape[self.dim] * self.groups
        except (TypeError, IndexError) as error:
            raise ValueError(f"event_shape must have {self.event_dim} dimensions, but found {event_shape!r}") from error

    def count(self, event_shape: tuple[int, ...]) -> int:
        """Number of entries of the mask of a weight of this event shape."""
        count, rest = divmod(self.width(event_shape), self.together)
        if rest:
            raise ValueError(
                f"{self.width(event_shape)} units of a weight of shape {tuple(event_shape)} cannot be switched "
                f"{self.together} at a time"
            )
        return count

    def laid_out(self, per_entry: Tensor) -> Tensor:
        """``[*batch, entries]``, or one for all, to what broadcasts against ``[*batch, width]``."""
        if self.together == 1 or per_entry.shape[-1] == 1:
            return per_entry
        return per_entry.repeat_interleave(self.together, dim=-1)

    def spread(self, per_unit: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """Lays ``[*batch, 1 or units]`` out so that it broadcasts against ``[*batch, *event_shape]``."""
        per_unit = self.laid_out(per_unit)
        batch, units = per_unit.shape[:-1], per_unit.shape[-1]
        if units == 1 or self.groups == 1:
            shape = [1] * self.event_dim
            shape[self.dim] = units
            return per_unit.reshape(*batch, *shape)
        rows = per_unit.reshape(*batch, self.groups, -1).repeat_interleave(event_shape[0] // self.groups, dim=-2)
        return rows.reshape(*rows.shape, *(1,) * (self.event_dim - 2))
