"""The normal prior of weights, with one lengthscale or one that grows with a layer's inputs."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor


def normal_prior(lengthscale: float | Tensor = 1.0, *, scaled: bool = False) -> Callable[[str, Tensor], dist.Normal]:
    r"""A prior for :class:`~pyro_dropout.BayesianModule`: ``Normal(0, 1/l)`` of each weight (CD appendix D).

    :param lengthscale: l, a number or a tensor; l² is the prior precision of a weight.
    :param scaled: weights of K inputs (of a convolution: channels times pixels of its kernel) have the lengthscale
        l √K instead; biases keep l.

    Example::

        >>> import torch
        >>> normal_prior(0.5, scaled=True)("weight", torch.zeros(2, 16)).scale
        tensor(0.5000)
    """

    def prior(_: str, parameter: Tensor) -> dist.Normal:
        inputs = parameter[0].numel() if scaled and parameter.dim() > 1 else 1
        return dist.Normal(0.0, 1.0 / (lengthscale * inputs**0.5))

    return prior
