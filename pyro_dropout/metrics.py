"""Measures of a posterior predictive distribution, from draws on the first dimension."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PredictiveMoments(NamedTuple):
    """Mean of a prediction and its variance in parts, in units of y and y²."""

    mean: Tensor
    epistemic: Tensor
    aleatoric: Tensor

    @property
    def variance(self) -> Tensor:
        """Predictive variance: epistemic + aleatoric."""
        return self.epistemic + self.aleatoric


def predictive_moments(mean: Tensor, noise_variance: Tensor | float = 0.0) -> PredictiveMoments:
    r"""Mean and variance of the predictive distribution by moments (MC eq. 11 and the variance after eq. 12):

    .. math:: E[y] \approx \frac{1}{T} \sum_t \hat y_t, \quad
        \mathrm{Var}[y] \approx \underbrace{\frac{1}{T} \sum_t \hat y_t^2 - E[y]^2}_\text{epistemic}
        + \underbrace{\frac{1}{T} \sum_t \tau_t^{-1}}_\text{aleatoric}

    The noise enters as a variance: for a heteroscedastic model it is the mean of the variances.

    :param mean: network means per draw, ``[draws, ...]``, in units of y.
    :param noise_variance: ``1 / precision`` in units of y²: a number, or per draw and datum, broadcastable to
        ``mean`` (a precision of shape ``[draws, 1]``, say).
    :returns: mean, epistemic and aleatoric variance, each ``[...]``.
    :raises ValueError: no draw dimension, or a negative variance.

    Example::

        >>> moments = predictive_moments(torch.tensor([[0.0], [2.0]]), noise_variance=0.25)
        >>> moments.mean, moments.epistemic, moments.aleatoric, moments.variance
        (tensor([1.]), tensor([1.]), tensor([0.2500]), tensor([1.2500]))
    """
    if mean.dim() == 0:
        raise ValueError("mean must have draws on its first dimension, but found a scalar")
    noise = torch.as_tensor(noise_variance, dtype=mean.dtype, device=mean.device)
    if noise.dim() not in (0, mean.dim()):
        raise ValueError(
            f"noise_variance must be a number or have the {mean.dim()} dimensions of mean, {tuple(mean.shape)}, with "
            f"draws first, but found shape {tuple(noise.shape)}"
        )
    _check_finite(mean=mean, noise_variance=noise)
    if bool((noise < 0).any()):
        raise ValueError(f"noise_variance must not be negative, but found {noise.min().item()}")
    center = mean.mean(0)
    return PredictiveMoments(center, (mean - center).square().mean(0), noise.expand_as(mean).mean(0))


def predictive_log_likelihood(log_likelihood: Tensor) -> Tensor:
    r"""Log-density of each point under the predictive mixture (MC eq. 13, for any likelihood):

    .. math:: \log p(y_n \mid x_n) \approx \log \frac{1}{T} \sum_t p(y_n \mid x_n, W_t)

    Per point, neither the joint density divided by N nor the density of a moment-matched Gaussian. The papers'
    test log-likelihood is its mean over points, in nats and in the units of the targets the model saw: with
    targets divided by s, subtract ``log s``.

    :param log_likelihood: ``log p(y_n | W_t)``, ``[draws, ...]``.
    :returns: ``[...]``.

    Example::

        >>> predictive_log_likelihood(torch.tensor([[0.1], [0.3]]).log()).exp()
        tensor([0.2000])
    """
    if log_likelihood.dim() == 0:
        raise ValueError("log_likelihood must have draws on its first dimension, but found a scalar")
    if bool(log_likelihood.isnan().any()):
        raise ValueError("log_likelihood has NaN entries: was the fit finite?")
    return log_likelihood.logsumexp(0) - math.log(log_likelihood.shape[0])


def interval_coverage(draws: Tensor, target: Tensor, probability: float) -> float:
    """Share of targets inside the central predictive interval of the given probability.

    :param draws: posterior predictive draws (noise included), ``[draws, ...]``.
    :param target: observed values, ``[...]``.
    :param probability: of the interval, in (0, 1).
    :raises ValueError: shapes that do not match, or a probability outside (0, 1).

    Example::

        >>> interval_coverage(torch.linspace(0.0, 1.0, 101).unsqueeze(-1).expand(101, 2), torch.tensor([0.3, 0.9]), 0.5)
        0.5
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must be in (0, 1), but found {probability}")
    if draws.shape[1:] != target.shape:
        raise ValueError(f"draws of shape {tuple(draws.shape)} do not match targets of shape {tuple(target.shape)}")
    _check_finite(draws=draws, target=target)
    low, high = draws.quantile((1 - probability) / 2, 0), draws.quantile((1 + probability) / 2, 0)
    return ((target >= low) & (target <= high)).float().mean().item()


def _check_finite(**named: Tensor) -> None:
    for name, value in named.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} has {int((~torch.isfinite(value)).sum())} NaN or infinite entries")
