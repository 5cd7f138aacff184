"""Distributions of masks and of masked weights, and the KL to a quantised prior.

Second in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.distributions.utils import lazy_property

from pyro_dropout.weight import MaskedWeight


class _Mask(TorchDistribution):
    """A mask over the units of a weight: independent entries, ``units`` the one event dimension."""

    arg_constraints = {}  # noqa: RUF012  (checked in __init__, which knows the site's conventions)

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
        if logits is None:
            if validate_args and not ((given >= 0) & (given < 1)).all():
                raise ValueError(f"rate is the probability of dropping a unit and lies in [0, 1), but found {rate}")
            self.rate, self.keep = given, 1 - given
        self._logits = None if logits is None else given
        self.units = units
        super().__init__(given.shape[:-1], torch.Size((units,)), validate_args=False)

    @property
    def _given(self) -> Tensor:
        return self.rate if self._logits is None else self._logits

    @lazy_property
    def rate(self) -> Tensor:
        """Probability of dropping, ``[*batch, 1]`` or ``[*batch, units]``."""
        return torch.sigmoid(-self._logits)

    @lazy_property
    def keep(self) -> Tensor:
        """Probability of keeping, ``1 - rate``."""
        return torch.sigmoid(self._logits)

    @property
    def logits(self) -> Tensor:
        """Log-odds of keeping."""
        return torch.logit(self.keep) if self._logits is None else self._logits

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(_Mask, _instance) if _instance is not None else object.__new__(type(self))
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
            h = F.binary_cross_entropy_with_logits(self._logits, self.keep, reduction="none")
        return h.sum(-1).mul(self.units / h.shape[-1]).expand(self.batch_shape)

    def _full_shape(self, sample_shape: Any) -> torch.Size:
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape


class BernoulliMask(_Mask):
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
    def has_rsample(self) -> bool:  # type: ignore[override]
        return not self._given.requires_grad

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


class ConcreteMask(_Mask):
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
        given = self._given
        noise = torch.rand(self._full_shape(sample_shape), dtype=given.dtype, device=given.device)
        noise.logit_(eps=torch.finfo(given.dtype).tiny)
        relaxed = (self.logits + noise) / self.temperature
        z = torch.sigmoid(relaxed)
        self._drawn = (z, relaxed)  # z rounds to 0 and 1; the density needs what was rounded away
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the relaxed mask with respect to Lebesgue measure on the unit cube, ``[*batch]``."""
        if self._drawn is not None and value is self._drawn[0]:
            y = self._drawn[1]
        else:
            tiny = torch.finfo(value.dtype).eps
            y = torch.logit(value, eps=tiny)
        noise = self.temperature * y - self.logits
        # logistic density of the noise, times d noise / d z = t / (z (1 - z))
        log_prob = math.log(self.temperature) - noise - 2 * F.softplus(-noise) + F.softplus(y) + F.softplus(-y)
        return log_prob.sum(-1)

    def icdf(self, q: Tensor) -> Tensor:
        return torch.sigmoid((self.logits + torch.logit(q)) / self.temperature)


class MaskedDelta(TorchDistribution):
    """The point mass at one masked weight: what a guide samples a weight site from, given its mask.

    :param weight: a :class:`~pyro_dropout.weight.MaskedWeight`.
    :param relaxed: whether its mask is relaxed.

    Example::

        >>> w = MaskedWeight(torch.ones(2, 3), torch.ones(3), keep=torch.tensor([0.9]))
        >>> MaskedDelta(w)() is w
        True
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, weight: MaskedWeight, relaxed: bool = False) -> None:
        self.weight, self.relaxed = weight, relaxed
        super().__init__(weight.batch_shape, weight.event_shape, validate_args=False)

    @property
    def support(self) -> Any:  # type: ignore[override]
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaskedDelta:
        return MaskedDelta(self.weight.expand(*batch_shape, *self.event_shape), self.relaxed)

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
    base: Any = prior
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if base.event_shape:
        raise ValueError(
            f"the prior of site {weight.site!r} is {type(base).__name__}, which has no density per weight; "
            "a dropout guide needs a factorised prior (Normal, Laplace, StudentT, ... with .to_event), "
            "or block the site and give it another guide"
        )
    total = _normal(weight, base) if type(base) is dist.Normal else _elementwise(weight, base)
    return total.expand(torch.broadcast_shapes(total.shape, weight.batch_shape))


def _elementwise(weight: MaskedWeight, base: Any) -> Tensor:
    keep = weight.units.spread(weight.keep, weight.event_shape)
    zero = weight.loc.new_zeros(())
    log_p0 = base.log_prob(zero) if bool(base.support.check(zero).all()) else zero.log()
    if bool((weight.keep < 1).any()):
        if not bool(torch.isfinite(log_p0).all()):
            raise ValueError(
                f"the prior of site {weight.site!r} ({type(base).__name__}) has density 0 or infinity at 0, where "
                "dropped weights lie; choose a prior with a finite density there, or rate 0 for this site"
            )
        log_p0 = (1 - keep) * log_p0
    else:
        log_p0 = zero
    try:
        log_p = keep * base.log_prob(weight.loc / keep) + log_p0
    except ValueError as error:
        raise ValueError(f"site {weight.site!r}: the prior has no density at loc / keep: {error}") from error
    return -log_p.flatten(-weight.units.event_dim).sum(-1)


def _normal(weight: MaskedWeight, base: dist.Normal) -> Tensor:
    """The same sum for a Normal, from the two moments ``E[w] = loc`` and ``E[w²] = loc² / keep``."""
    event_dim, n = weight.units.event_dim, weight.event_shape.numel()
    mean, scale = (_shared(t, event_dim) for t in (base.loc, base.scale))
    if mean.dim() >= event_dim and mean.shape[-event_dim:].numel() > 1:
        return _elementwise(weight, base)
    if scale.dim() >= event_dim and scale.shape[-event_dim:].numel() > 1:
        return _elementwise(weight, base)
    mean, scale = (t.reshape(t.shape[: max(t.dim() - event_dim, 0)]) for t in (mean, scale))
    loc = weight.loc
    if weight.keep.shape[-1] == 1:
        flat = loc.flatten(-event_dim)
        square = torch.linalg.vecdot(flat, flat) / weight.keep.squeeze(-1)
    else:
        keep = weight.units.spread(weight.keep, weight.event_shape)
        square = (loc.square() / keep).flatten(-event_dim).sum(-1)
    if mean.requires_grad or bool(mean.any()):
        square = square - 2 * mean * loc.flatten(-event_dim).sum(-1) + n * mean.square()
    return 0.5 * square / scale.square() + n * (scale.log() + 0.5 * math.log(2 * math.pi))


def _shared(t: Tensor, event_dim: int) -> Tensor:
    """One entry in place of dimensions along which a tensor was expanded from one number."""
    for d in range(-min(event_dim, t.dim()), 0):
        if t.stride(d) == 0:
            t = t.narrow(d, 0, 1)
    return t


@register_kl(MaskedDelta, torch.distributions.Distribution)
def _kl_masked_delta(q: MaskedDelta, p: TorchDistribution) -> Tensor:
    """For stock ``TraceMeanField_ELBO``, which counts the mask's own log-density: the cross-entropy alone."""
    if q.relaxed:
        raise ValueError(
            f"site {q.weight.site!r} has relaxed masks: a stock loss would add the density of the relaxed mask "
            "to the cross-entropy of the binary one, which is the KL of neither; use TraceDropout_ELBO"
        )
    return quantised_cross_entropy(q.weight, p)
