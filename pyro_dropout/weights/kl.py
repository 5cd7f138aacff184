"""The KL of a dropout posterior to a quantised prior: its cross-entropy, in closed form for any factorised prior.

The other half, the entropy of the mask, is the mask's own (``Mask.entropy``) and is counted once, by the mask's site.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from pyro_dropout._checks import check_distributions, check_tensors, said
from pyro_dropout._sites import elementwise
from pyro_dropout._values import holds, is_traced
from pyro_dropout.weights.delta import MaskedDelta
from pyro_dropout.weights.weight import MaskedWeight, Switch


def quantised_cross_entropy(weight: MaskedWeight, prior: TorchDistribution) -> Tensor:
    r"""Cross-entropy of a dropout posterior to a factorised prior, ``[*batch]`` in nats:

    .. math:: -\sum_{w} \bigl[\mathrm{keep} \log p(\mathrm{loc} / \mathrm{keep}) + \mathrm{rate} \log p(0)\bigr]

    exact because a weight takes two values (with masks of input and of output units too: 0 unless both are kept, and
    keep is the product). With the entropy of the mask it is the KL to the quantised prior,
    CD eq. 3 and LBD section 2.2 with the density's constant kept. For ``Normal(0, 1/l)`` it is
    ``l²/2 Σ loc²/keep`` plus the normaliser: ``lengthscale`` l is the square root of a prior *precision*
    (l = 1e-4 means a standard deviation of 1e4).

    :param weight: the masked weight; its mask plays no part.
    :param prior: a distribution over the whole weight with an elementwise density, such as
        ``Laplace(0., 1.).expand(shape).to_event()``.
    :raises ValueError: the prior does not factorise over weights, or its density at 0 is 0 or infinite.

    Example::

        >>> w = MaskedWeight(torch.ones(1, 2), torch.ones(2), keep=torch.tensor([0.5]))
        >>> prior = dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2)
        >>> quantised_cross_entropy(w, prior)  # 2 · (½ · 1 / 0.5 + ½ log 2π)
        tensor(3.8379)
    """
    if not isinstance(weight, MaskedWeight):
        raise TypeError(f"weight must be a MaskedWeight, but found {said(weight)}")
    _check_prior(prior, weight.event_shape, weight.units.event_dim)
    total = _normal(weight.loc, weight.units.event_dim, prior, weight.switches)
    total = _elementwise(weight, prior) if total is None else total
    if total.shape == weight.batch_shape:
        return total
    return total.expand(torch.broadcast_shapes(total.shape, weight.batch_shape))


def point_cross_entropy(value: Tensor, prior: TorchDistribution) -> Tensor:
    """``-log p(value)``: what a point estimate pays, the case ``keep = 1`` of :func:`quantised_cross_entropy`.

    :param value: the point, ``[*batch, *event]``.
    :param prior: its prior, ``[*batch]`` or one for all.
    :returns: ``[*batch]``, in nats.

    Example::

        >>> point_cross_entropy(torch.ones(2), dist.Normal(0.0, 1.0).expand([2]).to_event(1))  # 2 · (½ + ½ log 2π)
        tensor(2.8379)
    """
    check_tensors(value=value)
    _check_prior(prior, value.shape)
    total = _normal(value, prior.event_dim, prior)
    return -prior.log_prob(value) if total is None else total


def _check_prior(prior: TorchDistribution, shape: torch.Size, event_dim: int | None = None) -> None:
    """A prior over the whole of a value of this shape; of fewer event dimensions it is one for each entry."""
    check_distributions(prior=prior)
    event = prior.event_shape
    if event and event_dim in (None, len(event)) and shape[len(shape) - len(event) :] != event:
        raise ValueError(f"the prior is over values of shape {tuple(event)}, but the value has shape {tuple(shape)}")


def _elementwise(weight: MaskedWeight, prior: TorchDistribution) -> Tensor:
    base = elementwise(prior)
    if base.event_shape:
        raise ValueError(
            f"the prior of site {weight.site!r} is {type(base).__name__}, which has no density per weight; "
            "a dropout guide needs a factorised prior (Normal, Laplace, StudentT, ... with .to_event), "
            "or hide the site with poutine.block and give it another guide"
        )
    keep = _keep_of_entries(weight.switches, weight.event_shape)
    zero = weight.loc.new_zeros(())
    log_p0 = zero
    if not holds(keep == 1, unknown=False):
        log_p0 = base.log_prob(zero) if holds(base.support.check(zero), unknown=True) else zero.log()
        if not holds(torch.isfinite(log_p0), unknown=True):
            raise ValueError(
                f"the prior of site {weight.site!r} ({type(base).__name__}) has density 0 or infinity at 0, where "
                "dropped weights lie; choose a prior with a finite density there, or rate 0 for this site"
            )
        log_p0 = (1 - keep) * log_p0
    try:
        log_p = keep * base.log_prob(weight.loc / keep) + log_p0
    except ValueError as error:
        raise ValueError(f"site {weight.site!r}: the prior has no density at loc / keep: {error}") from error
    return -log_p.flatten(-weight.units.event_dim).sum(-1)


def _normal(loc: Tensor, event_dim: int, prior: TorchDistribution, switches: tuple[Switch, ...] = ()) -> Tensor | None:
    """The same sum for one Normal over all weights, from ``Σ E[w] = Σ loc`` and ``Σ E[w²] = Σ loc² / keep``."""
    base = elementwise(prior)
    if type(base) is not dist.Normal:
        return None
    mean, scale = _constant(base.loc), _constant(base.scale)
    if mean is None or scale is None:
        return None
    n = loc.shape[loc.dim() - event_dim :].numel()
    square = _sum_of_squares(loc, event_dim, switches)
    if isinstance(mean, Tensor) or mean != 0:
        square = square - 2 * mean * _flat(loc, event_dim).sum(-1) + n * mean**2
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return square * (0.5 / scale**2) + n * (log_scale + 0.5 * math.log(2 * math.pi))


def _sum_of_squares(loc: Tensor, event_dim: int, switches: tuple[Switch, ...]) -> Tensor:
    """``Σ loc² / keep`` over a weight's entries, by as few passes over memory as its rates allow; ``[*batch]``."""
    by_unit = tuple(switch for switch in switches if switch.keep.shape[-1] > 1)
    square = _by_unit(loc, event_dim, by_unit)
    for switch in switches:
        if switch.keep.shape[-1] == 1:  # one rate: outside of the sum
            square = square / (switch.keep[0] if switch.keep.dim() == 1 else switch.keep.squeeze(-1))
    return square


def _by_unit(loc: Tensor, event_dim: int, switches: tuple[Switch, ...]) -> Tensor:
    if not switches:
        flat = _flat(loc, event_dim)
        return torch.linalg.vecdot(flat, flat)
    first = switches[0].units
    if len(switches) == 1 and event_dim > 1 and first.groups == 1:  # a sum for each unit first
        per_unit = loc.movedim(first.dim - event_dim, -event_dim).flatten(1 - event_dim)
        return (torch.linalg.vecdot(per_unit, per_unit) / first.laid_out(switches[0].keep)).sum(-1)
    keep = _keep_of_entries(switches, loc.shape[loc.dim() - event_dim :])
    return (loc.square() / keep).flatten(-event_dim).sum(-1)


def _keep_of_entries(switches: tuple[Switch, ...], event: torch.Size) -> Tensor:
    """The probability that all units of an entry are kept, as it broadcasts against a weight."""
    keeps = [switch.units.spread(switch.keep, event) for switch in switches]
    return math.prod(keeps[1:], start=keeps[0])


def _flat(loc: Tensor, event_dim: int) -> Tensor:
    """``[*batch, entries]``, of numbers too."""
    if event_dim == 1:
        return loc
    return loc.flatten(-event_dim) if event_dim else loc.unsqueeze(-1)


def _constant(t: Tensor) -> float | Tensor | None:
    """The number that a tensor was expanded from, if that is what it is and nothing learns it."""
    if t.requires_grad or any(stride != 0 and size != 1 for stride, size in zip(t.stride(), t.shape, strict=True)):
        return None
    number = t[(0,) * t.dim()]
    return number if is_traced() else number.item()


@register_kl(MaskedDelta, torch.distributions.Distribution)
def _kl_masked_delta(q: MaskedDelta, p: TorchDistribution) -> Tensor:
    """For stock ``TraceMeanField_ELBO``, which counts the mask's own log-density: the cross-entropy alone."""
    if q.relaxed:
        raise ValueError(
            f"site {q.weight.site!r} has relaxed masks: a stock loss would add the density of the relaxed mask "
            "to the cross-entropy of the binary one, which is the KL of neither; use TraceDropout_ELBO"
        )
    if any(switch.keep.requires_grad for switch in q.weight.switches):
        raise ValueError(
            f"site {q.weight.site!r} has hard masks with learned rates: TraceMeanField_ELBO would take only a part of "
            "the rates' gradient; use TraceDropout_ELBO, Trace_ELBO or TraceGraph_ELBO"
        )
    return quantised_cross_entropy(q.weight, p)
