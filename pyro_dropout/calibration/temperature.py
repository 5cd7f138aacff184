"""The temperature of class probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyro_dropout.calibration._held_out import held_out_labels
from pyro_dropout.metrics.labels import check_finite, from_draws

_LOG_RANGE, _POINTS = 7.0, 57  # around the temperature at which logits of a datum have a deviation of 1


def fit_temperature(logits: Any, labels: Any) -> float:
    r"""The temperature at which draws together give held-out labels the largest likelihood:

    .. math:: \hat T = \arg\max_T \sum_n \log \frac1K \sum_k \mathrm{softmax}(f_k(x_n) / T)_{y_n}

    Of one draw it is temperature scaling (Guo et al. 2017). Draws are scaled before they are averaged, so that each is
    still a network: ``(logits / T).softmax(-1)`` are probabilities of all draws, for entropies and mutual information
    as for means. The most probable class of one network stays the same, of a mean of several it may change.

    :param logits: of held-out data, ``[draws, N, classes]``; a predictive's ``"_RETURN"`` where the model returns them.
    :param labels: integers, ``[N]``.
    :raises ValueError: shapes that do not match, a label that is no class, entries that are not finite; data whose
        likelihood has its maximum at no temperature: it rises down to 0, as where every label is the most probable
        class, or without end, as where logits say nothing of labels.

    Example::

        >>> logits = torch.tensor([[[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]]])  # sure of the class
        >>> labels = torch.tensor([0, 0, 1, 1])  # which is right three times of four: odds 3
        >>> round(fit_temperature(logits, labels), 3), round(4 / torch.log(torch.tensor(3.0)).item(), 3)
        (3.641, 3.641)
    """
    scores, _ = from_draws(logits, "logits")
    if scores.dim() != 3 or scores.shape[-1] < 2:
        raise ValueError(f"logits must be [draws, N, classes], of two classes or more, but found {tuple(scores.shape)}")
    check_finite(logits=scores)
    scores = scores.double()
    y = held_out_labels(labels, scores.shape[1:], "logits", like=logits)

    def loss(log_temperature: float) -> float:
        return _loss(scores, y, math.exp(-log_temperature))

    spread = scores.std(-1).mean().item()
    if not spread > 0:
        raise ValueError("logits must differ between the classes of a datum, but found none that do")
    grid = math.log(spread) + np.linspace(-_LOG_RANGE, _LOG_RANGE, _POINTS)
    best = int(np.argmin([loss(point) for point in grid]))
    if best in (0, _POINTS - 1):
        why = (
            "the lower the temperature, the better: every label is the most probable class of nearly all data, or of "
            "some draw; give more held-out data"
            if best == 0
            else "the higher the temperature, the better: labels are no more probable than other classes; are they in "
            "the order of the data and of the classes?"
        )
        raise ValueError(f"logits of these {len(y)} data and labels have no best temperature: {why}")
    found = minimize_scalar(loss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def _loss(logits: Tensor, labels: Tensor, scale: float) -> float:
    """Mean negative log-likelihood of a label, without a constant."""
    log_probs = (scale * logits).log_softmax(-1)[:, torch.arange(len(labels)), labels]
    return -log_probs.logsumexp(0).mean().item()
