"""Checks of what an estimator takes: the mask it draws, and the losses of a joint draw's members."""

from __future__ import annotations

from typing import Any

import torch

from pyro_dropout._checks import check_tensors, checked_shape, said
from pyro_dropout.masks.distributions import Mask


def check_mask(mask: Any) -> None:
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be the distribution of a mask, such as BernoulliMask, but found {said(mask)}")


def checked_draw(mask: Any, shape: Any) -> torch.Size:
    check_mask(mask)
    return checked_shape("shape", shape)


def check_losses(losses: Any, mask: Any, z: Any) -> None:
    """The losses of all members broadcast with their masks ``[members, *shape, units]``."""
    check_mask(mask)
    check_tensors(losses=losses, z=z)
    if losses.shape == z.shape[:-1]:
        return
    if losses.dim() and z.dim() and len(losses) == len(z) and z.shape[-1] in (1, mask.units):
        try:
            torch.broadcast_shapes(losses.shape, z.shape[:-1])
        except RuntimeError:
            pass
        else:
            return
    raise ValueError(
        f"losses must be those of each member, [members, *shape], for z [members, *shape, {mask.units}], but found "
        f"losses of shape {tuple(losses.shape)} and z of shape {tuple(z.shape)}"
    )
