"""How well a ranking of items finds those that a user chose later (Liang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def recall_at(k: int, scores: Tensor, targets: Tensor) -> Tensor:
    """Share of a user's targets among the first k items, ``[users]``; of k, where a user has more targets.

    :param scores: ``[users, items]``; -inf where an item may not be recommended, as a user's inputs.
    :param targets: ``[users, items]``, not 0 where an item is one; every user has some.
    :raises ValueError: a user without targets, of whom nothing can be said; scores that are NaN.

    Example::

        >>> recall_at(2, torch.tensor([[0.3, 0.2, 0.1]]), torch.tensor([[1, 0, 1]]))
        tensor([0.5000])
    """
    hits = _hits(k, scores, targets)
    return hits.sum(-1) / _targets(targets).clamp(max=k)


def ndcg_at(k: int, scores: Tensor, targets: Tensor) -> Tensor:
    """Discounted cumulative gain of the first k items, 1 / log2(1 + rank) for each target, over the best, ``[users]``.

    Arguments and errors as of :func:`recall_at`.

    Example::

        >>> ndcg_at(2, torch.tensor([[0.3, 0.2, 0.1]]), torch.tensor([[0, 1, 0]]))
        tensor([0.6309])
    """
    gains = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float))
    best = torch.cat([torch.zeros(1), gains.cumsum(0)])[_targets(targets).clamp(max=k)]
    return (_hits(k, scores, targets) * gains).sum(-1) / best


def _hits(k: int, scores: Tensor, targets: Tensor) -> Tensor:
    if not 0 < k <= scores.shape[-1]:
        raise ValueError(f"k must be one of 1 to {scores.shape[-1]}, the number of items, but found {k}")
    if bool(scores.isnan().any()):
        raise ValueError("scores have NaN, which has no rank")
    return (targets != 0).gather(-1, scores.topk(k).indices).float()


def _targets(targets: Tensor) -> Tensor:
    number = (targets != 0).sum(-1)
    if not bool(number.all()):
        raise ValueError(f"every user must have targets, but {int((number == 0).sum())} of {len(number)} have none")
    return number
