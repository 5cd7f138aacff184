"""Normal priors and PyTorch's weight decay, taken to each other (MC eq. 12)."""

from __future__ import annotations

import math

from pyro_dropout._checks import check_keep, check_positive


def lengthscale_of(weight_decay: float, size: int | None, keep: float = 1.0, precision: float = 1.0) -> float:
    """Lengthscale l of the prior ``Normal(0, 1/l)`` that a weight decay stands for; see :func:`from_torch`.

    Example::

        >>> lengthscale_of(1e-2, size=1000, keep=0.9)
        3.0
    """
    if size is None:
        raise ValueError("weight_decay is of the mean loss: give size, the number of data points, but found None")
    if weight_decay == 0:
        raise ValueError(f"weight_decay must be positive, but found {weight_decay}: the prior would be flat; give one")
    check_positive(weight_decay=weight_decay, size=size, precision=precision)
    check_keep(keep=keep)
    return math.sqrt(size * weight_decay * keep * precision)


def weight_decay_of(lengthscale: float, size: int, keep: float = 1.0, precision: float = 1.0) -> float:
    """The weight decay that a prior ``Normal(0, 1/lengthscale)`` stands for; see :func:`from_torch`.

    Example::

        >>> round(weight_decay_of(3.0, size=1000, keep=0.9), 6)
        0.01
    """
    check_positive(lengthscale=lengthscale, size=size, precision=precision)
    check_keep(keep=keep)
    return lengthscale**2 / (size * keep * precision)
