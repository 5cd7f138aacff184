"""Whether predictive draws of a number are where the number is: coverage, calibration, proper scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_dropout._checks import check_flags, said
from pyro_dropout.metrics.labels import as_tensor, check_finite, from_draws


def interval_coverage(draws: Any, target: Any, probability: float) -> float:
    r"""Share of targets inside the central predictive interval of the given probability.

    .. math:: \hat f(1 - \alpha / 2) - \hat f(\alpha / 2), \quad \alpha = 1 - \mathrm{probability}

    with :math:`\hat f` the :func:`quantile_coverage`: draws of the truth have the probability itself on average, few or
    many, and of discrete targets as well.

    :param draws: posterior predictive draws (noise included), ``[draws, ...]`` or labelled.
    :param target: observed values, ``[...]``; labelled ones are matched by their labels.
    :param probability: of the interval, in (0, 1).
    :raises ValueError: shapes that do not match, or a probability outside (0, 1).

    Example::

        >>> interval_coverage(torch.linspace(0.0, 1.0, 101).unsqueeze(-1).expand(101, 2), torch.tensor([0.3, 0.9]), 0.5)
        0.5
    """
    x, y, _ = _checked(draws, target)
    low, high = _below(x, y, _edges(probability))
    return (high - low).item()


def interval_score(draws: Any, target: Any, probability: float) -> Any:
    r"""Interval score of the central predictive interval [l, u], a proper score; smaller is better:

    .. math:: (u - l) + \frac{2}{\alpha} (l - y)_+ + \frac{2}{\alpha} (y - u)_+, \quad \alpha = 1 - \mathrm{probability}

    (Gneiting & Raftery 2007, eq. 43.) Quantiles of T draws are linear between the draws of rank p (T + 1); beyond the
    smallest or largest draw they are that draw.

    :param draws: posterior predictive draws (noise included), ``[draws, ...]`` or labelled, in units of y.
    :param target: observed values, ``[...]``; labelled ones are matched by their labels.
    :param probability: of the interval, in (0, 1).
    :returns: ``[...]``, in units of y.
    :raises ValueError: shapes that do not match, or a probability outside (0, 1).

    Example::

        >>> draws = torch.linspace(0.0, 1.0, 101).unsqueeze(-1)
        >>> interval_score(draws, torch.tensor([1.0]), 0.5)  # width 0.51, outside by 0.245
        tensor([1.4900])
    """
    x, y, label = _checked(draws, target)
    low, high = _quantiles(x, _edges(probability))
    outside = (low - y).clamp_min(0) + (y - high).clamp_min(0)
    return label(high - low + 2 / (1 - probability) * outside)


def crps(draws: Any, target: Any, *, fair: bool = False) -> Any:
    r"""Continuous ranked probability score, a proper score; smaller is better:

    .. math:: \mathrm{E}|X - y| - \frac{1}{2} \mathrm{E}|X - X'|
        = \int \bigl(F(x) - 1[x \ge y]\bigr)^2 dx

    (Gneiting & Raftery 2007, eq. 20 and 21), of the empirical distribution of the draws. That of few draws is larger on
    average than that of the distribution they are from; ``fair`` removes this (Ferro 2014: pairs of different draws).

    :param draws: posterior predictive draws (noise included), ``[draws, ...]`` or labelled, in units of y.
    :param target: observed values, ``[...]``; labelled ones are matched by their labels.
    :param fair: estimate the score of the distribution, without bias, instead of that of its draws.
    :returns: ``[...]``, in units of y.
    :raises ValueError: shapes that do not match; a fair score of one draw.

    Example::

        >>> crps(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0]))  # 1 - ½ · 1
        tensor([0.5000])
    """
    x, y, label = _checked(draws, target)
    n = len(x)
    check_flags(fair=fair)
    if fair and n < 2:
        raise ValueError("a fair score needs two draws or more, but found one")
    # Σ |x_i - x_j| over ordered pairs is 2 Σ (2 i - n - 1) x_(i), with x sorted and centred against cancellation.
    weights = torch.arange(1 - n, n, 2, dtype=x.dtype, device=x.device)
    pairs = 2 * torch.tensordot(weights, (x - y).sort(0).values, dims=1)
    return label((x - y).abs().mean(0) - 0.5 * pairs / (n * (n - 1 if fair else n)))


def quantile_coverage(draws: Any, target: Any, probabilities: Any) -> Tensor:
    r"""Share of targets below each predictive quantile; a calibrated prediction has the probabilities themselves.

    .. math:: \hat f(p) = \frac{1}{N} \sum_n \Pr\Bigl[\frac{L_n + U (E_n + 1)}{T + 1} \le p\Bigr],
        \quad U \sim \mathrm{Uniform}(0, 1)

    with :math:`L_n` of the T draws below the target and :math:`E_n` equal to it: at p = k / (T + 1) the share of
    targets below the k-th smallest draw, linear between, and ties in part (the transform of Czado, Gneiting & Held
    2009). Its mean is p exactly for draws from the distribution of the target, few or many, continuous or discrete.

    :param draws: posterior predictive draws (noise included), ``[draws, ...]`` or labelled.
    :param target: observed values, ``[...]``; labelled ones are matched by their labels.
    :param probabilities: of the quantiles, ``[k]`` in (0, 1).
    :returns: ``[k]``.
    :raises ValueError: shapes that do not match, or a probability outside (0, 1).

    Example::

        >>> draws = torch.linspace(0.0, 1.0, 101).unsqueeze(-1).expand(101, 4)
        >>> quantile_coverage(draws, torch.tensor([0.1, 0.2, 0.3, 0.9]), [0.25, 0.5])
        tensor([0.5000, 0.7500])
    """
    x, y, _ = _checked(draws, target)
    p = as_tensor(probabilities, "probabilities").to(x.device, torch.float64)
    _check_probabilities(probabilities=p)
    return _below(x, y, p.reshape(-1)).reshape(p.shape).to(x.dtype)


def calibration_error(draws: Any, target: Any, probabilities: Any = None) -> float:
    r"""Root mean square distance of the calibration plot from its diagonal (CD figure 2 and table 2):

    .. math:: \Bigl[\frac{1}{k} \sum_j \bigl(\hat f(p_j) - p_j\bigr)^2\Bigr]^{1/2}

    with :math:`\hat f` the :func:`quantile_coverage`. N targets of a calibrated prediction have about
    ``(6 N)^-0.5``, of numbers or of counts. For class probabilities, as in the paper's plot, take
    ``torchmetrics.CalibrationError(norm="l2")``.

    :param draws: posterior predictive draws (noise included), ``[draws, ...]`` or labelled.
    :param target: observed values, ``[...]``; labelled ones are matched by their labels.
    :param probabilities: of the quantiles; 0.05, 0.10, ..., 0.95 by default.
    :returns: in [0, 1].
    :raises ValueError: shapes that do not match, or a probability outside (0, 1).

    Example::

        >>> draws = torch.linspace(0.0, 1.0, 101).unsqueeze(-1).expand(101, 4)
        >>> round(calibration_error(draws, torch.tensor([0.1, 0.2, 0.3, 0.9]), [0.25, 0.5]), 4)
        0.25
    """
    p = torch.arange(1, 20) / 20.0 if probabilities is None else as_tensor(probabilities, "probabilities")
    found = quantile_coverage(draws, target, p)
    return (found - p.to(found)).square().mean().sqrt().item()


def _edges(probability: float) -> Tensor:
    p = as_tensor(probability, "probability")
    if p.dim():
        raise ValueError(f"probability must be one number, but found {said(p)}")
    _check_probabilities(probability=p)
    number = float(probability)  # as it was given, not as a float32
    return torch.tensor([(1 - number) / 2, (1 + number) / 2], dtype=torch.float64)


def _below(x: Tensor, y: Tensor, p: Tensor) -> Tensor:
    """The share of targets below quantiles ``[k]``, those at one in part."""
    less, ties = (x < y).sum(0).flatten().double(), (x == y).sum(0).flatten().double()
    place = p.to(x.device) * (len(x) + 1)
    return torch.stack([((at - less) / (ties + 1)).clamp(0, 1).mean() for at in place])


def _quantiles(x: Tensor, p: Tensor) -> Tensor:
    """Linear between draws, ``[k, ...]``: ``torch.quantile`` refuses more than 16 million entries.

    The k-th smallest of T draws is the quantile of k / (T + 1), as that is its mean probability.
    """
    ordered = x.sort(0).values
    place = (p.to(x.device) * (len(x) + 1) - 1).clamp(0, len(x) - 1)
    below = place.floor().long()
    share = (place - below).to(x).reshape(-1, *(1,) * (x.dim() - 1))
    return torch.lerp(ordered[below], ordered[(below + 1).clamp_max(len(x) - 1)], share)


def _check_probabilities(**named: Tensor) -> None:
    for name, p in named.items():
        if not p.numel() or not bool(((p > 0) & (p < 1)).all()):
            raise ValueError(f"{name} must be in (0, 1), but found {p.tolist()}")


def _checked(draws: Any, target: Any) -> tuple[Tensor, Tensor, Any]:
    x, label = from_draws(draws, "draws")
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    y = as_tensor(target, "target", like=draws).to(x)
    if x.shape[1:] != y.shape:
        raise ValueError(f"draws of shape {tuple(x.shape)} do not match target of shape {tuple(y.shape)}")
    if not y.numel():
        raise ValueError(f"target must have one entry or more, but found shape {tuple(y.shape)}")
    check_finite(draws=x, target=y)
    return x, y, label
