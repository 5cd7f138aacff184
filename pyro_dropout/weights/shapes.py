"""The shape convention: where particles, plates and data stand among the batch dimensions of weights and inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class BatchDims(NamedTuple):
    r"""How the batch dimensions of a weight stand to those of its layer's input.

    Batch dimensions stand on the left, as in Pyro: particles and posterior draws, then plates of networks, then the
    data. A weight knows no data: its last batch dimension, if it has any, has size 1 and is the *place of the data*.
    One that comes without it, ``[S]`` of stock ``Predictive``, is meant as ``[S, 1]``.

    Networks are made for inputs ``[N, ...]``. Where weights or inputs have more batch dimensions, ``BayesianModule``
    *merges* them into one, which the network takes for its batch; each layer with a masked weight *splits* them, masks
    its input, and merges what it returns. Of a layer with 3 inputs and 2 outputs, for N data, S draws, R networks:

    ========================== ================= ============ ======== =============== ======== ==============
    case                       loc               mask         plates   input           merged   output
    ========================== ================= ============ ======== =============== ======== ==============
    one draw                   [2, 3]            [3]          []       [N, 3]                   [N, 2]
    one draw, over time        [2, 3]            [3]          []       [N, T, 3]                [N, T, 2]
    a mask per datum           [2, 3]            [N, 3] *     []       [N, T, 3]                [N, T, 2]
    S draws, a plain layer     [2, 3]            [S, 3]       [S]      [N, 3]                   [S, N, 2]
    S draws                    [2, 3]            [S, 1, 3]    [S, 1]   [S N, 3]        (S, N)   [S N, 2]
    S draws, a mask per datum  [2, 3]            [S, N, 3] *  [S, 1]   [S N, T, 3]     (S, N)   [S N, T, 2]
    R networks                 [R, 1, 2, 3]      [R, 1, 3]    [R, 1]   [R N, 3]        (R, N)   [R N, 2]
    S draws of R networks      [R, 1, 2, 3]      [S, R, 1, 3] [S,R,1]  [S R N, 3]      (S,R,N)  [S R N, 2]
    ========================== ================= ============ ======== =============== ======== ==============

    (``*``: drawn when the layer sees its input.)

    What stands before the first mask, the *trunk*, is the same for all draws and need not run for each: an input may be
    ``[N, 3]`` where ``[S N, 3]`` stands in the table, one for all of the first ``trunk`` merged dimensions.

    :param plates: batch shape of the weight.
    :param merged: sizes of the batch dimensions that stand merged in the input's first one; empty where none are.
    :param trunk: number of these, the first ones, that an input may lack.

    Example::

        >>> dims = BatchDims(torch.Size([5, 1]), (5, 7))  # 5 draws, 7 data
        >>> x = dims.merge(torch.ones(7, 3), event_dim=1)
        >>> x.shape, dims.split(x).shape
        (torch.Size([35, 3]), torch.Size([5, 7, 3]))
        >>> dims.align(torch.ones(5, 1, 3), batch=torch.Size([5, 7, 2])).shape  # with 2 times between data and units
        torch.Size([5, 1, 1, 3])
    """

    plates: torch.Size
    merged: tuple[int, ...] = ()
    trunk: int = 0

    def merge(self, x: Tensor, event_dim: int) -> Tensor:
        """What the network takes: ``[*batch, *event]``, broadcast, to ``[product of merged, *event]``."""
        return x.expand(*self.merged, *x.shape[x.dim() - event_dim :]).flatten(0, len(self.merged) - 1)

    def split(self, x: Tensor) -> Tensor:
        """``[product of merged, ...]`` to ``[*merged, ...]``; as it is, where nothing was merged.

        Of the trunk, ``[product of the data's, ...]``, to ``[1, ..., *the data's, ...]``.
        """
        if not self.merged:
            return x
        if self.trunk and x.shape[0] == math.prod(own := self.merged[self.trunk :]) != math.prod(self.merged):
            return x.unflatten(0, (*(1,) * self.trunk, *own))
        return x.unflatten(0, self.merged)

    def whole(self, x: Tensor) -> Tensor:
        """What was split, with all draws."""
        return x.expand(*self.merged, *x.shape[len(self.merged) :])

    def rejoin(self, x: Tensor) -> Tensor:
        """The way back, of what a layer returns."""
        return x.flatten(0, len(self.merged) - 1) if self.merged else x

    def of_masks(self, batch: torch.Size) -> tuple[int, ...]:
        """Shape of the masks per datum for an input of this (split) batch: a mask for each datum of each plate."""
        if not self.plates:
            return (*batch[:1], *(1,) * (len(self.merged) - 1))
        if self.merged:
            return self.merged
        return tuple(torch.broadcast_shapes(with_place_of_data(self.plates), batch))

    def align(self, t: Tensor, batch: torch.Size, space: int = 0, event_dim: int = 1) -> Tensor:
        """Inserts the dimensions that make a weight's ``[*plates, *event]`` broadcast against an input.

        Those of the data that the weight has not: behind the plates, one where the place of the data is missing and one
        for each of the input's batch dimensions (time) beyond the merged ones; behind the units, those of space.

        :param t: loc, keep, mask or bias.
        :param batch: the (split) input's batch dimensions.
        :param space: dimensions behind the units.
        """
        plates = t.shape[: t.dim() - event_dim]
        missing = 0
        if plates and batch:
            missing = len(batch) - len(self.merged) if self.merged else 0
            if not has_place_of_data(self.plates or plates):
                missing += 1
        if not missing and not space:
            return t
        return t.reshape(*plates, *(1,) * missing, *t.shape[len(plates) :], *(1,) * space)


def has_place_of_data(plates: torch.Size) -> bool:
    return plates[-1] == 1


def with_place_of_data(plates: torch.Size) -> torch.Size:
    """The batch shape of weights with the place of the data, which stock ``Predictive`` leaves out."""
    return plates if has_place_of_data(plates) else plates + (1,)
