"""A run of guide and model, and what runs give to the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pyro_dropout.masks.messengers import JointDraw


class GuidedRun(NamedTuple):
    """One run of guide and model, and the joint draws of masks in it whose rates are learned."""

    model_trace: Any
    guide_trace: Any
    draws: list[JointDraw]


class Terms(NamedTuple):
    """Terms of the loss of some runs.

    :param loss: they add up to it; a term that has members, to their weighted mean.
    :param changed: for each run the losses that its masks could have changed, ``[members, *particles, *plates]``.
    """

    loss: list[Tensor]
    changed: list[list[Tensor]]
