"""Mean, variance in its parts, and log-likelihood of a posterior predictive distribution."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pyro_dropout.metrics.labels import as_tensor, broadcast, check_finite, from_draws, is_labelled


class PredictiveMoments(NamedTuple):
    """Mean of a prediction and its variance in parts, in units of y and y².

    Example::

        >>> moments = PredictiveMoments(torch.tensor(1.0), epistemic=torch.tensor(0.5), aleatoric=torch.tensor(0.25))
        >>> moments.variance
        tensor(0.7500)
    """

    mean: Any
    epistemic: Any
    aleatoric: Any

    @property
    def variance(self) -> Any:
        """Predictive variance: epistemic + aleatoric."""
        return self.epistemic + self.aleatoric


def predictive_moments(mean: Any, noise_variance: Any = 0.0) -> PredictiveMoments:
    r"""Mean and variance of the predictive distribution by moments (MC eq. 11 and the variance after eq. 12):

    .. math:: E[y] \approx \frac{1}{T} \sum_t \hat y_t, \quad
        \mathrm{Var}[y] \approx \underbrace{\frac{1}{T} \sum_t \hat y_t^2 - E[y]^2}_\text{epistemic}
        + \underbrace{\frac{1}{T} \sum_t \tau_t^{-1}}_\text{aleatoric}

    The noise enters as a variance: for a heteroscedastic model it is the mean of the variances.

    :param mean: network means per draw, ``[draws, ...]`` or labelled by ArviZ, in units of y.
    :param noise_variance: ``1 / precision`` in units of y²: a number, or per draw and datum, broadcastable to
        ``mean`` (a precision of shape ``[draws, 1]``, say).
    :returns: mean, epistemic and aleatoric variance, each ``[...]``.
    :raises ValueError: no draw dimension, or a negative variance.

    Example::

        >>> moments = predictive_moments(torch.tensor([[0.0], [2.0]]), noise_variance=0.25)
        >>> moments.mean, moments.epistemic, moments.aleatoric, moments.variance
        (tensor([1.]), tensor([1.]), tensor([0.2500]), tensor([1.2500]))
    """
    mu, label = from_draws(mean, "mean")
    mu = mu if mu.is_floating_point() else mu.to(torch.get_default_dtype())
    if is_labelled(noise_variance, "noise_variance"):
        noise_variance, _ = from_draws(broadcast(noise_variance, "noise_variance", like=mean), "noise_variance")
    noise = as_tensor(noise_variance, "noise_variance").to(mu)
    if noise.dim() not in (0, mu.dim()) or any(n not in (1, m) for n, m in zip(noise.shape, mu.shape, strict=False)):
        raise ValueError(
            f"noise_variance must be a number or have the {mu.dim()} dimensions of mean, {tuple(mu.shape)}, with "
            f"draws first, but found shape {tuple(noise.shape)}"
        )
    check_finite(mean=mu, noise_variance=noise)
    if bool((noise < 0).any()):
        raise ValueError(f"noise_variance must not be negative, but found {noise.min().item()}")
    center = mu.mean(0)
    epistemic, aleatoric = (mu - center).square().mean(0), noise.expand_as(mu).mean(0)
    return PredictiveMoments(label(center), label(epistemic), label(aleatoric))


def predictive_log_likelihood(log_likelihood: Any) -> Any:
    r"""Log-density of each point under the predictive mixture (MC eq. 13, for any likelihood):

    .. math:: \log p(y_n \mid x_n) \approx \log \frac{1}{T} \sum_t p(y_n \mid x_n, W_t)

    Per point, neither the joint density divided by N nor the density of a moment-matched Gaussian. The papers'
    test log-likelihood is its mean over points, in nats and in the units of the targets the model saw: with
    targets divided by s, subtract ``log s``.

    :param log_likelihood: ``log p(y_n | W_t)``, ``[draws, ...]`` or labelled by ArviZ.
    :returns: ``[...]``.

    Example::

        >>> predictive_log_likelihood(torch.tensor([[0.1], [0.3]]).log()).exp()
        tensor([0.2000])
    """
    values, label = from_draws(log_likelihood, "log_likelihood")
    if bool(values.isnan().any()):
        raise ValueError("log_likelihood has NaN entries: was the fit finite?")
    return label(values.logsumexp(0) - math.log(len(values)))
