"""Predictions that are given only where they are certain: the risk of those that are, against their share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_dropout.metrics.labels import as_tensor, check_finite


class RiskCoverage(NamedTuple):
    """Risk against coverage, from the most certain prediction to all of them.

    :param coverage: share of predictions that are given, ``[n]``: 1/n, 2/n, ..., 1.
    :param risk: their mean loss, ``[n]``.

    Example::

        >>> RiskCoverage(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.5])).area
        tensor(0.2500)
    """

    coverage: Tensor
    risk: Tensor

    @property
    def area(self) -> Tensor:
        """AURC (Geifman et al. 2019): the mean risk over all coverages."""
        return self.risk.mean()


def risk_coverage(uncertainty: Any, loss: Any) -> RiskCoverage:
    r"""The mean loss of the predictions that are most certain, for each number k of them (El-Yaniv & Wiener 2010):

    .. math:: \mathrm{risk}_k = \frac{1}{k} \sum_{i \le k} \mathrm{loss}_{(i)}, \quad u_{(1)} \le u_{(2)} \le \dots

    Of predictions that are equally uncertain it is what a random order has on average, so that it does not depend on
    the order of the data.

    :param uncertainty: of each prediction, any shape: predictive entropy, mutual information, a variance.
    :param loss: of the same shape: whether the label is wrong, a negative log-likelihood, a squared error.
    :returns: coverage and risk, and the area below the curve.
    :raises ValueError: shapes that differ, no predictions, numbers that are not finite.

    Example::

        >>> curve = risk_coverage(torch.tensor([0.1, 0.9, 0.2]), torch.tensor([False, True, False]))
        >>> curve.risk, curve.area
        (tensor([0.0000, 0.0000, 0.3333]), tensor(0.1111))
    """
    unsure, losses = as_tensor(uncertainty, "uncertainty"), as_tensor(loss, "loss", like=uncertainty)
    if unsure.shape != losses.shape:
        raise ValueError(
            f"uncertainty and loss must have one shape, but found {tuple(unsure.shape)} and {tuple(losses.shape)}"
        )
    if not unsure.numel():
        raise ValueError("there is nothing to count: uncertainty is empty")
    check_finite(uncertainty=unsure, loss=losses)
    values, level = unsure.flatten().unique(return_inverse=True)
    ones = torch.ones_like(level, dtype=torch.float64)
    sums, counts = (ones.new_zeros(len(values)).index_add(0, level, t) for t in (losses.flatten().double(), ones))
    among = (sums / counts).repeat_interleave(counts.long())  # of a random one of those that are equally uncertain
    number = ones.cumsum(0)
    dtype = losses.dtype if losses.is_floating_point() else torch.get_default_dtype()
    return RiskCoverage((number / len(number)).to(dtype), (among.cumsum(0) / number).to(dtype))
