"""Split-conformal sets and intervals: they hold a new label as often as is asked for, whatever the network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_dropout._checks import check_share
from pyro_dropout.calibration._held_out import held_out_labels
from pyro_dropout.metrics.labels import as_tensor, check_finite, class_probabilities, from_draws


def conformal_threshold(probs: Any, labels: Any, coverage: float = 0.9) -> float:
    r"""The probability from which on a class belongs to a datum's set of labels (Sadinle et al. 2019):

    .. math:: C(x) = \{c : \bar p_c(x) \ge \hat t\}, \quad \Pr(y \in C(x)) \ge \mathrm{coverage}

    where t̂ is the ⌊(1 - coverage)(N + 1)⌋-th smallest mean probability of a held-out label (the largest, where that is
    N + 1). The bound is over held-out
    data and a new one that are exchangeable, on average over both, whatever the network (Vovk et al. 2005); with
    another distribution of inputs it does not hold. No smaller sets have it for a network whose probabilities are
    right. A set may be empty, where no class is as probable as labels usually are.

    :param probs: class probabilities of held-out data, ``[draws, N, classes]``; ``[1, N, classes]`` of one network.
    :param labels: integers, ``[N]``.
    :param coverage: share of data whose set is to hold the label, in [0, 1).
    :returns: t̂, for ``probs.mean(0) >= threshold`` of new data, ``[N', classes]``.
    :raises ValueError: shapes that do not match, entries that are no probabilities, a label that is no class; fewer
        held-out data than coverage / (1 - coverage), of which no set but all classes is wide enough.

    Example::

        >>> held_out = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]])
        >>> threshold = conformal_threshold(held_out, torch.tensor([0, 1, 1, 0]), coverage=0.8)
        >>> torch.tensor([[0.95, 0.05], [0.5, 0.5]]) >= threshold
        tensor([[ True, False],
                [ True,  True]])
    """
    p, _ = class_probabilities(probs)
    if p.dim() != 3:
        raise ValueError(f"probs must be [draws, N, classes], but found shape {tuple(p.shape)}")
    mean = p.mean(0)
    y = held_out_labels(labels, mean.shape, "probs", like=probs)
    return -_quantile(-mean[torch.arange(len(y)), y], coverage)


def conformal_factor(draws: Any, y: Any, coverage: float = 0.9) -> float:
    r"""How many predictive deviations an interval must reach (Lei et al. 2018, section 5.2):

    .. math:: C(x) = \mu(x) \pm \hat k \sigma(x), \quad \Pr(y \in C(x)) \ge \mathrm{coverage}

    where μ and σ are mean and deviation of the draws of a datum, and k̂ is the ⌈coverage (N + 1)⌉-th smallest
    \|y - μ\| / σ of held-out data. The bound is as that of :func:`conformal_threshold`.

    :param draws: of the predictive distribution of held-out data, noise included, ``[draws, N]``, in units of y.
    :param y: held-out responses, ``[N]``.
    :param coverage: share of data whose interval is to hold the response, in [0, 1).
    :returns: k̂, for ``new.mean(0) ± factor * new.std(0)``.
    :raises ValueError: shapes that do not match, fewer than two draws, draws that do not differ, entries that are not
        finite; too few held-out data, as of :func:`conformal_threshold`.

    Example::

        >>> draws = torch.tensor([[-1.0, 9.0, -2.0], [1.0, 11.0, 2.0]])  # means 0, 10, 0
        >>> factor = conformal_factor(draws, torch.tensor([1.0, 10.0, 1.0]), coverage=0.75)
        >>> round(factor, 4)  # of the first datum, 1 / sqrt(2)
        0.7071
    """
    samples, _ = from_draws(draws, "draws")
    observed = as_tensor(y, "y", like=draws)
    if samples.dim() != 2 or len(samples) < 2 or not samples.shape[1]:
        raise ValueError(f"draws must be [draws, N], of two draws or more, but found shape {tuple(samples.shape)}")
    if observed.shape != samples.shape[1:]:
        raise ValueError(
            f"y must be one for each of the {samples.shape[1]} data of draws, but found {tuple(observed.shape)}"
        )
    check_finite(draws=samples, y=observed)
    samples = samples.double()
    deviation = samples.std(0)
    if not bool((deviation > 0).all()):
        raise ValueError(f"draws must differ, but those of {int((deviation == 0).sum())} data are all the same")
    return _quantile((observed - samples.mean(0)).abs() / deviation, coverage)


def _quantile(scores: Tensor, coverage: float) -> float:
    """The ⌈coverage (N + 1)⌉-th smallest score: a new one is not above it as often as is asked for."""
    check_share(coverage=coverage)
    rank = math.ceil(round(coverage * (len(scores) + 1), 9))
    if rank > len(scores):
        least = math.ceil(round(coverage / (1 - coverage), 9))
        raise ValueError(
            f"a coverage of {coverage} needs {least} held-out data or more, but found {len(scores)}: give more, or a "
            "smaller coverage"
        )
    return scores.double().sort().values[max(rank, 1) - 1].item()
