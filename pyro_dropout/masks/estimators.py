"""How the rates of hard masks learn: a joint draw of a few masks, and a rule that makes a gradient of their losses.

A further estimator is one more class here, or in a user's own code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dropout.masks._joint import check_losses, checked_draw
from pyro_dropout.masks.distributions import BernoulliMask


@dataclass(frozen=True)
class GradientEstimator(ABC):
    r"""An estimator of :math:`\nabla_a \mathbb{E}[f(z)]` for :math:`z \sim \mathrm{Bernoulli}(\sigma(a))`.

    A loss draws ``members`` masks jointly with :meth:`sample`, evaluates them in one vectorised pass, and hands what
    each entry of the mask could have changed (the losses of its own datum, where masks are per datum) to
    :meth:`surrogate`. All other parameters learn from the same pass.

    Example, one's own (the score function, of one mask alone)::

        >>> class Score(GradientEstimator):
        ...     members = 1
        ...     def sample(self, mask, shape):
        ...         return mask.expand(shape)((1,)), None
        ...     def surrogate(self, losses, mask, z, noise):
        ...         return (losses.detach() * mask.log_prob(z)).sum()
        >>> Score().weights
        (1.0,)
    """

    @property
    @abstractmethod
    def members(self) -> int:
        """Number of masks of one joint draw."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Each member's share of the loss and of the gradients of all other parameters; they add up to 1.

        A member whose mask does not have the mask's own distribution (a relaxed one, say) must have 0.
        """
        return (1 / self.members,) * self.members

    @abstractmethod
    def sample(self, mask: BernoulliMask, shape: torch.Size) -> tuple[Tensor, Any]:
        """Draws the members: ``[members, *shape, units]``, and whatever else the surrogate needs of the draw."""

    @abstractmethod
    def surrogate(self, losses: Tensor, mask: BernoulliMask, z: Tensor, noise: Any) -> Tensor:
        """A scalar whose gradient with respect to ``mask.logits`` is the estimate; its value does not matter.

        It must reach no other parameter: the masks of other layers have a call of their own.

        :param losses: f at each member, ``[members, *shape]``, with its graph.
        :param mask: the distribution drawn from, with its logits of keeping.
        :param z: the members' masks, ``[members, *shape, units]``.
        :param noise: what :meth:`sample` returned beside them.
        """


@dataclass(frozen=True)
class ARM(GradientEstimator):
    r"""Augment-REINFORCE-merge (LBD eq. 7; Yin & Zhou 2019), an antithetic pair from one uniform u:

    .. math:: \nabla_a \mathbb{E}[f(z)] = \mathbb{E}\bigl[(f(\tilde z) - f(z)) (u - \tfrac12)\bigr], \quad
        z = 1[u < \sigma(a)], \quad \tilde z = 1[u > \sigma(-a)]

    with *a* the logit of keeping and *f* the loss.

    Example::

        >>> mask = BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=2)
        >>> z, u = ARM().sample(mask, torch.Size([5]))  # one mask for each of five data
        >>> z.shape  # and both of the pair
        torch.Size([2, 5, 2])
        >>> ARM().surrogate(z.sum(-1), mask, z, u).backward()
        >>> mask.logits.grad.shape
        torch.Size([1])
    """

    members = 2

    def sample(self, mask: BernoulliMask, shape: torch.Size) -> tuple[Tensor, Tensor]:
        u, z = _antithetic_pair(mask, shape)
        return z, u

    def surrogate(self, losses: Tensor, mask: BernoulliMask, z: Tensor, noise: Tensor) -> Tensor:
        check_losses(losses, mask, z)
        difference = (losses[1] - losses[0]).detach().unsqueeze(-1)
        return (difference * (noise - 0.5) * mask.logits).sum()


@dataclass(frozen=True)
class DisARM(GradientEstimator):
    r"""ARM with the uniforms integrated out given the pair, so never of higher variance (Dong, Mnih & Tucker 2020):

    .. math:: \nabla_a \mathbb{E}[f(z)] = \mathbb{E}\bigl[\tfrac12 (f(z) - f(\tilde z)) (-1)^{\tilde z}\,
        1[z \neq \tilde z]\, \sigma(|a|)\bigr]

    for the pair of :class:`ARM`. The default where rates of hard masks are learned.

    Example::

        >>> mask = BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=1)
        >>> z, _ = DisARM().sample(mask, torch.Size([5]))
        >>> DisARM().surrogate(z.sum(-1), mask, z, None).backward()
        >>> mask.logits.grad / 5  # d/da σ(a) at 0, without noise as this pair always differs
        tensor([0.2500])
    """

    members = 2

    def sample(self, mask: BernoulliMask, shape: torch.Size) -> tuple[Tensor, None]:
        return _antithetic_pair(mask, shape)[1], None

    def surrogate(self, losses: Tensor, mask: BernoulliMask, z: Tensor, noise: None) -> Tensor:
        check_losses(losses, mask, z)
        difference = 0.5 * (losses[0] - losses[1]).detach().unsqueeze(-1)
        sign = z[0] - z[1]  # (-1)^z̃ where z and z̃ differ, else 0
        slope = torch.sigmoid(mask.logits.detach().abs())
        return (difference * sign * (slope * mask.logits)).sum()


@dataclass(frozen=True)
class Reinforce(GradientEstimator):
    r"""The score function with a leave-one-out baseline, from independent draws (Kool, van Hoof & Welling 2019):

    .. math:: \nabla_a \mathbb{E}[f(z)] = \mathbb{E}\Bigl[\frac1M \sum_m \Bigl(f(z_m) -
        \frac{1}{M-1} \sum_{j \neq m} f(z_j)\Bigr) (z_m - \sigma(a))\Bigr]

    :param members: number M of draws, at least 2.
    :raises ValueError: fewer than two members, which leave nothing for a baseline.

    Example::

        >>> mask = BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=2)
        >>> z, _ = Reinforce(4).sample(mask, torch.Size([5]))
        >>> z.shape
        torch.Size([4, 5, 2])
    """

    members: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.members, bool) or not isinstance(self.members, int) or self.members < 2:
            raise ValueError(f"Reinforce needs at least two members for its baseline, but found {self.members!r}")

    def sample(self, mask: BernoulliMask, shape: torch.Size) -> tuple[Tensor, None]:
        shape = checked_draw(mask, shape)
        return mask.expand(shape)((self.members,)), None

    def surrogate(self, losses: Tensor, mask: BernoulliMask, z: Tensor, noise: None) -> Tensor:
        check_losses(losses, mask, z)
        advantage = (losses - losses.mean(0)).detach() / (self.members - 1)
        return (advantage * mask.log_prob(z)).sum()


def _antithetic_pair(mask: BernoulliMask, shape: torch.Size) -> tuple[Tensor, Tensor]:
    shape = checked_draw(mask, shape)
    rate, dtype = mask.rate.detach(), mask.keep.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype  # half precision has no 0.9999
    u, rate = torch.rand((*shape, mask.units), dtype=wide, device=rate.device), rate.to(wide)
    return u.to(dtype), torch.stack([(u < 1 - rate).to(dtype), (u > rate).to(dtype)])


ESTIMATORS: dict[str, GradientEstimator] = {"arm": ARM(), "disarm": DisARM(), "reinforce": Reinforce()}
