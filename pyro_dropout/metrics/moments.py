"""Mean, variance in its parts, and log-likelihood of a posterior predictive distribution, also merged from parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_dropout._checks import check_counts, said
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


def merge(parts: list[Any] | tuple[Any, ...], draws: list[int] | tuple[int, ...]) -> Any:
    r"""Moments, or log mean densities, of all draws from those of disjoint sets of draws of the same data:

    .. math:: \mu = \sum_i w_i \mu_i, \quad e = \sum_i w_i \bigl(e_i + (\mu_i - \mu)^2\bigr), \quad
        a = \sum_i w_i a_i, \quad \log p = \log \sum_i w_i p_i, \quad w_i = T_i / \sum_j T_j

    The epistemic variance by the law of total variance, from deviations of means and not from means of squares (Chan et
    al. 1979), so that nothing cancels; all are those of the draws together, to rounding. Sets of draws have different
    seeds. What is predicted of disjoint *rows* needs no more than ``torch.cat``, of moments
    ``PredictiveMoments(*map(torch.cat, zip(*parts)))``; of the same draws, which one seed makes.

    :param parts: a set of draws each: :class:`PredictiveMoments`, or what :func:`predictive_log_likelihood` and
        ``DropoutPredictive.log_likelihood`` give, ``[...]``; tensors or labelled by ArviZ.
    :param draws: the number of draws :math:`T_i` of each part.
    :returns: the same of all draws.
    :raises ValueError: no parts, parts of different shapes, NaN, negative variances, or not a number of draws for each.
    :raises TypeError: moments beside densities, or dicts by site: merge each site's.

    Example::

        >>> draws, noise = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [1.0], [4.0]])
        >>> first, second = predictive_moments(draws[:1], noise[:1]), predictive_moments(draws[1:], noise[1:])
        >>> merge([first, second], draws=[1, 2])
        PredictiveMoments(mean=tensor([2.]), epistemic=tensor([2.6667]), aleatoric=tensor([2.]))
        >>> merge([torch.tensor(0.1).log(), torch.tensor(0.3).log()], draws=[3, 1]).exp()
        tensor(0.1500)
    """
    if isinstance(parts, PredictiveMoments) or not isinstance(parts, list | tuple):
        raise TypeError(f"parts must be a list with a part for each set of draws, but found {said(parts)}")
    if not isinstance(draws, list | tuple):
        raise TypeError(f"draws must be a list with the number of draws of each part, but found {said(draws)}")
    if not parts or len(draws) != len(parts):
        raise ValueError(f"parts and draws must be as many, at least one, but found {len(parts)} and {len(draws)}")
    for number in draws:
        check_counts(draws=number)
    are_moments = {isinstance(part, PredictiveMoments) for part in parts}
    if are_moments == {True, False} or any(isinstance(part, dict) for part in parts):
        kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
        raise TypeError(f"parts must be moments or log densities, of one site, and all of one kind, but found {kinds}")
    weights = torch.tensor(draws, dtype=torch.float64) / sum(draws)
    if are_moments == {False}:
        values, label = _stacked(parts, "parts")
        if bool(values.isnan().any()):
            raise ValueError("log densities of parts have NaN entries: were the fits finite?")
        return label((values + _beside(values, weights).log()).logsumexp(0))
    of_parts = dict(zip(PredictiveMoments._fields, zip(*parts, strict=True), strict=True))
    (mean, label), (epistemic, _), (aleatoric, _) = (_stacked(of, f"{n} of parts") for n, of in of_parts.items())
    if not mean.shape == epistemic.shape == aleatoric.shape:
        shapes = ", ".join(str(tuple(values.shape[1:])) for values in (mean, epistemic, aleatoric))
        raise ValueError(f"parts must have mean, epistemic and aleatoric of one shape, but found {shapes}")
    check_finite(**{"mean of parts": mean, "epistemic of parts": epistemic, "aleatoric of parts": aleatoric})
    if bool((epistemic < 0).any() or (aleatoric < 0).any()):
        raise ValueError("parts must not have negative variances")
    center = _averaged(mean, weights)
    epistemic = _averaged(epistemic + (mean - center).square(), weights)
    return PredictiveMoments(label(center), label(epistemic), label(_averaged(aleatoric, weights)))


def _stacked(values: Any, name: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """``[parts, ...]``, and what gives a result the labels of the first part."""
    first = values[0]
    tensors = [as_tensor(value, name, like=first) for value in values]
    shapes = list(dict.fromkeys(tuple(tensor.shape) for tensor in tensors))
    if len(shapes) > 1:
        raise ValueError(f"{name} must be of one shape, but found {', '.join(map(str, shapes))}")
    stacked = torch.stack(tensors)
    stacked = stacked if stacked.is_floating_point() else stacked.to(torch.get_default_dtype())
    if is_labelled(first, name):
        return stacked, lambda result: first.copy(data=result.cpu().numpy())
    return stacked, lambda result: result


def _beside(values: Tensor, weights: Tensor) -> Tensor:
    return weights.to(values).reshape(-1, *(1 for _ in values.shape[1:]))


def _averaged(values: Tensor, weights: Tensor) -> Tensor:
    """Of differences from the first, so that equal values stay as they are."""
    return values[0] + (_beside(values, weights) * (values - values[0])).sum(0)
