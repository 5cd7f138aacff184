"""Distributions of masks and of masked weights, and the KL to a quantised prior.

Second in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.distributions.utils import lazy_property

from pyro_dropout._sites import holds, is_traced
from pyro_dropout.weights.weight import MaskedUnits, MaskedWeight


class Mask(TorchDistribution):
    """A mask over the units of a weight: independent entries, ``units`` the one event dimension."""

    arg_constraints: ClassVar[dict[str, Any]] = {}  # __init__ checks, and says what a rate is

    def __init__(
        self, rate: Any = None, *, logits: Tensor | None = None, units: int, validate_args: bool = True
    ) -> None:
        if (rate is None) == (logits is None):
            raise ValueError("give either rate, the probability of dropping, or logits, the log-odds of keeping")
        given = torch.as_tensor(rate) if logits is None else logits
        given = given.reshape(1) if given.dim() == 0 else given
        if validate_args and given.shape[-1] not in (1, units):
            raise ValueError(
                f"a mask over {units} units takes one rate or {units}, but found shape {tuple(given.shape)}"
            )
        self._logits = logits if logits is None else given
        if logits is None:
            if validate_args and not ((given >= 0) & (given < 1)).all():
                raise ValueError(f"rate is the probability of dropping a unit and lies in [0, 1), but found {rate}")
            self.rate, self.keep = given, 1 - given
        self.units = units
        super().__init__(given.shape[:-1], torch.Size((units,)), validate_args=False)

    @property
    def _given(self) -> Tensor:
        return self.rate if self._logits is None else self._logits

    @lazy_property
    def rate(self) -> Tensor:
        """Probability of dropping, ``[*batch, 1]`` or ``[*batch, units]``."""
        return torch.sigmoid(-self._given)

    @lazy_property
    def keep(self) -> Tensor:
        """Probability of keeping, ``1 - rate``."""
        return torch.sigmoid(self._given)

    @property
    def logits(self) -> Tensor:
        """Log-odds of keeping."""
        return torch.logit(self.keep) if self._logits is None else self._logits

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(Mask, _instance) if _instance is not None else object.__new__(type(self))
        new.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_cached")})
        new._batch_shape = torch.Size(batch_shape)
        return new

    def entropy(self) -> Tensor:
        r"""Entropy of the binary mask, ``[*batch]`` in nats (CD eq. 4, a sum over the units):

        .. math:: \sum_k H(\mathrm{keep}_k), \quad H(k) = -k \log k - (1-k) \log(1-k)

        Relaxed masks use it too: CD appendix B, first interpretation.
        """
        if self._logits is None:
            h = -torch.xlogy(self.keep, self.keep) - torch.xlogy(self.rate, self.rate)
        else:
            h = F.softplus(self._logits) - self._logits * self.keep
        h = h.squeeze(-1) * self.units if h.shape[-1] == 1 else h.sum(-1)
        return h if h.shape == self.batch_shape else h.expand(self.batch_shape)

    def _full_shape(self, sample_shape: Any) -> torch.Size:
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape


class BernoulliMask(Mask):
    r"""Hard masks, :math:`z_k \sim \mathrm{Bernoulli}(1 - \mathrm{rate}_k)` (MC section 3).

    With fixed rates a draw depends on no parameter, so it counts as reparametrised; with learned ones it does
    not, and stock losses use the score function.

    :param rate: probability of dropping a unit, in [0, 1): a number, ``[*batch, 1]`` or ``[*batch, units]``.
        MC and LBD write p for ``1 - rate``.
    :param logits: instead of ``rate``, the log-odds of *keeping* a unit (LBD's parameter).
    :param units: number of masked units.
    :raises ValueError: a rate outside [0, 1), or of a wrong shape.

    Example::

        >>> BernoulliMask(rate=0.0, units=3)()
        tensor([1., 1., 1.])
    """

    support = constraints.independent(constraints.boolean, 1)

    @property
    def learned(self) -> bool:
        """Whether a parameter stands behind the rates."""
        return self._given.requires_grad

    @property
    def has_rsample(self) -> bool:
        return not self.learned

    @has_rsample.setter
    def has_rsample(self, value: bool) -> None:
        pass  # BroadcastMessenger copies the attribute; here it follows from the parameters

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.keep.expand(self._full_shape(sample_shape)))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._logits is None:
            log_prob = torch.xlogy(value, self.keep) + torch.xlogy(1 - value, self.rate)
        else:
            logits, value = torch.broadcast_tensors(self._logits, value)
            log_prob = -F.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return log_prob.expand(*log_prob.shape[:-1], self.units).sum(-1)

    def icdf(self, q: Tensor) -> Tensor:
        return (q > self.rate).to(self.keep.dtype)


class ConcreteMask(Mask):
    r"""Relaxed masks (CD eq. 5), differentiable in the rate:

    .. math:: z_k = \sigma\bigl((a_k + \log u - \log(1 - u)) / t\bigr), \quad u \sim \mathrm{Uniform}(0, 1)

    with *a* the log-odds of keeping and *t* the temperature. A relaxed mask does not keep the mean: at rate 0.1
    ``E[z] / keep`` is 0.9985 at temperature 0.1 and 0.950 at 2/3.

    :param rate: probability of dropping a unit, in [0, 1). (CD's p is this rate; its eq. 5 writes the mask of
        *dropped* units, ours is one minus it.)
    :param logits: instead of ``rate``, the log-odds of keeping.
    :param units: number of masked units.
    :param temperature: t > 0.
    :raises ValueError: a rate outside [0, 1), a wrong shape, a temperature that is not positive.

    Example::

        >>> z = ConcreteMask(logits=torch.tensor([2.0]), units=3, temperature=0.1)()
        >>> bool(((z >= 0) & (z <= 1)).all())
        True
    """

    has_rsample = True
    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(
        self,
        rate: Any = None,
        *,
        logits: Tensor | None = None,
        units: int,
        temperature: float = 0.1,
        validate_args: bool = True,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, but found {temperature}")
        self.temperature = temperature
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(rate, logits=logits, units=units, validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        logits = self.logits
        noise = torch.rand(self._full_shape(sample_shape), dtype=logits.dtype, device=logits.device)
        noise.logit_(eps=torch.finfo(logits.dtype).tiny).mul_(1 / self.temperature)
        relaxed = torch.add(noise, logits, alpha=1 / self.temperature)
        z = torch.sigmoid(relaxed)
        self._drawn = (z, relaxed)  # z rounds to 0 and 1; the density needs what was rounded away
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the relaxed mask with respect to Lebesgue measure on the unit cube, ``[*batch]``."""
        if self._drawn is not None and value is self._drawn[0]:
            y = self._drawn[1]
        else:
            y = torch.logit(value, eps=torch.finfo(value.dtype).eps)
        noise = self.temperature * y - self.logits
        # logistic density of the noise, times d noise / d z = t / (z (1 - z))
        log_prob = math.log(self.temperature) - noise - 2 * F.softplus(-noise) + F.softplus(y) + F.softplus(-y)
        return log_prob.sum(-1)

    def icdf(self, q: Tensor) -> Tensor:
        return torch.sigmoid((self.logits + torch.logit(q)) / self.temperature)


class MaskedDelta(TorchDistribution):
    """The point mass at one masked weight: what a guide samples a weight site from, given its mask.

    :param weight: a :class:`~pyro_dropout.weights.weight.MaskedWeight`.
    :param relaxed: whether its mask is relaxed.

    Example::

        >>> w = MaskedWeight(torch.ones(2, 3), torch.ones(3), keep=torch.tensor([0.9]))
        >>> MaskedDelta(w)() is w
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, weight: MaskedWeight, relaxed: bool = False) -> None:
        self.weight, self.relaxed = weight, relaxed
        super().__init__(weight.batch_shape, weight.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaskedDelta:
        weight: Any = self.weight.expand(*batch_shape, *self.event_shape)
        return MaskedDelta(weight, self.relaxed)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.weight.expand(*sample_shape, *self.weight.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if isinstance(value, MaskedWeight) and value.loc is self.weight.loc and value.mask is self.weight.mask:
            return self.weight.loc.new_zeros(self.batch_shape)
        equal = (value == self.weight).flatten(-len(self.event_shape)).all(-1)
        return equal.to(self.weight.dtype).log()


def quantised_cross_entropy(weight: MaskedWeight, prior: TorchDistribution) -> Tensor:
    r"""Cross-entropy of a dropout posterior to a factorised prior, ``[*batch]`` in nats:

    .. math:: -\sum_{w} \bigl[\mathrm{keep} \log p(\mathrm{loc} / \mathrm{keep}) + \mathrm{rate} \log p(0)\bigr]

    exact because a weight takes two values. With the entropy of the mask it is the KL to the quantised prior,
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
    total = _normal(weight.loc, weight.keep, weight.units, prior)
    total = _elementwise(weight, prior) if total is None else total
    if total.shape == weight.batch_shape:
        return total
    return total.expand(torch.broadcast_shapes(total.shape, weight.batch_shape))


def point_cross_entropy(value: Tensor, prior: TorchDistribution) -> Tensor:
    """``-log p(value)``: what a point estimate pays, which is the case ``keep = 1`` of the formula above."""
    total = _normal(value, None, MaskedUnits(prior.event_dim), prior)
    return -prior.log_prob(value) if total is None else total


def _elementwise(weight: MaskedWeight, prior: TorchDistribution) -> Tensor:
    base = _per_weight(prior)
    if base.event_shape:
        raise ValueError(
            f"the prior of site {weight.site!r} is {type(base).__name__}, which has no density per weight; "
            "a dropout guide needs a factorised prior (Normal, Laplace, StudentT, ... with .to_event), "
            "or hide the site with poutine.block and give it another guide"
        )
    keep = weight.units.spread(weight.keep, weight.event_shape)
    zero = weight.loc.new_zeros(())
    log_p0 = zero
    if not holds(weight.keep == 1, unknown=False):
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


def _normal(loc: Tensor, keep: Tensor | None, units: MaskedUnits, prior: TorchDistribution) -> Tensor | None:
    """The same sum for one Normal over all weights, from ``Σ E[w] = Σ loc`` and ``Σ E[w²] = Σ loc² / keep``."""
    base = _per_weight(prior)
    if type(base) is not dist.Normal:
        return None
    mean, scale = _constant(base.loc), _constant(base.scale)
    if mean is None or scale is None:
        return None
    event_shape = loc.shape[loc.dim() - units.event_dim :]
    n = event_shape.numel()
    flat = loc if units.event_dim == 1 else loc.flatten(-units.event_dim) if units.event_dim else loc.unsqueeze(-1)
    if keep is None or keep.shape[-1] == 1:
        square = torch.linalg.vecdot(flat, flat)
        square = square if keep is None else square / (keep[0] if keep.dim() == 1 else keep.squeeze(-1))
    elif units.groups == 1:
        per_unit = loc.movedim(units.dim - units.event_dim, -units.event_dim).flatten(1 - units.event_dim)
        square = (torch.linalg.vecdot(per_unit, per_unit) / keep).sum(-1)
    else:
        square = (loc.square() / units.spread(keep, event_shape)).flatten(-units.event_dim).sum(-1)
    if isinstance(mean, Tensor) or mean != 0:
        square = square - 2 * mean * flat.sum(-1) + n * mean**2
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return square * (0.5 / scale**2) + n * (log_scale + 0.5 * math.log(2 * math.pi))


def _per_weight(prior: Any) -> Any:
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    return prior


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
    if q.weight.keep.requires_grad:
        raise ValueError(
            f"site {q.weight.site!r} has hard masks with learned rates: TraceMeanField_ELBO would take only a part of "
            "the rates' gradient; use TraceDropout_ELBO, Trace_ELBO or TraceGraph_ELBO"
        )
    return quantised_cross_entropy(q.weight, p)
