"""Exact objectives of small dropout networks: every mask, dense weights, plain torch, nothing of the package."""

import itertools
import math

import torch
from torch import Tensor


def all_masks(units: int) -> Tensor:
    """``[2^units, units]``"""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)


def log_likelihoods(locs, biases, logits, x, y, scale) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all joint masks ``[S]``, and the data's log-likelihoods under each ``[S, N]``.

    ``logits`` are the keep logits by layer, one per input unit.
    """
    widths = [loc.shape[1] for loc in locs]
    z = all_masks(sum(widths))
    keep = torch.cat([torch.sigmoid(a) for a in logits])
    log_q = (z * keep.log() + (1 - z) * (1 - keep).log()).sum(1)
    h = x.expand(len(z), *x.shape)
    for i, (loc, bias, mask) in enumerate(zip(locs, biases, z.split(widths, 1), strict=True)):
        dense = loc * (mask / torch.sigmoid(logits[i])).unsqueeze(1)  # [S, out, in]
        h = h @ dense.mT + bias
        h = h.relu() if i < len(locs) - 1 else h
    residual = (y - h.squeeze(-1)) / scale
    return log_q, -0.5 * residual**2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def kl(locs, logits) -> Tensor:
    """To a standard normal prior: CD eq. 3 with the prior's constants."""
    total = torch.zeros((), dtype=torch.float64)
    for loc, a in zip(locs, logits, strict=True):
        keep = torch.sigmoid(a)
        entropy = -(keep * keep.log() + (1 - keep) * (1 - keep).log()).sum()
        total = total - entropy + 0.5 * (loc**2 / keep).sum() + 0.5 * loc.numel() * math.log(2 * math.pi)
    return total


def energy(log_q: Tensor, log_p: Tensor, alpha: float, particles: int) -> Tensor:
    """``E[-(1/α) Σ_n log 1/K Σ_k p(y_n | W_k)^α]`` over ``particles`` (1 or 2) independent draws; α = 0: the ELBO's."""
    if alpha == 0 or particles == 1:
        return -(log_q.exp() @ log_p).sum()
    assert particles == 2
    power = alpha * log_p
    pairs = torch.logaddexp(power[:, None], power[None]) - math.log(2)  # [S, S, N]
    both = (log_q[:, None] + log_q[None]).exp()
    return -(both.unsqueeze(-1) * pairs).sum() / alpha
