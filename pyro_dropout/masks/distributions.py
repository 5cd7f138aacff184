"""Distributions of masks: hard (Bernoulli) and relaxed (Concrete), over the units of a weight."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from pyro_dropout._checks import as_numbers, check_counts, check_positive, check_tensors, checked_shape, said
from pyro_dropout._values import is_traced


class Mask(TorchDistribution):
    """A mask over the units of a weight: independent entries, ``units`` the one event dimension.

    The base class of masks. A subclass says how a mask is drawn: ``rsample`` where the rates' gradient goes through
    the draw, ``sample`` and ``learned`` where it does not, ``log_prob``, ``icdf``. Rate, keep, logits and the entropy
    of the binary mask, which every loss takes, are common to all.

    :param rate: probability of dropping a unit, in [0, 1): a number, ``[*batch, 1]`` or ``[*batch, units]``.
    :param logits: instead of ``rate``, the log-odds of *keeping* a unit.
    :param units: number of masked units.
    :param validate_args: check rates and shapes.
    :raises ValueError: a rate outside [0, 1), or of a wrong shape; both of rate and logits, or neither.

    Example::

        >>> mask = BernoulliMask(rate=0.5, units=3)
        >>> isinstance(mask, Mask), mask.event_shape, mask.entropy()  # 3 log 2
        (True, torch.Size([3]), tensor(2.0794))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # __init__ checks, and says what a rate is

    def __init__(
        self, rate: Any = None, *, logits: Tensor | None = None, units: int, validate_args: bool = True
    ) -> None:
        if (rate is None) == (logits is None):
            raise ValueError("give either rate, the probability of dropping, or logits, the log-odds of keeping")
        given = _checked(rate, logits, units) if validate_args else torch.as_tensor(rate) if logits is None else logits
        given = given.reshape(1) if given.dim() == 0 else given
        if validate_args and given.shape[-1] not in (1, units):
            what = "rate" if logits is None else "logits"
            raise ValueError(
                f"a mask over {units} units takes one rate or {units}, but found {what} of shape {tuple(given.shape)}"
            )
        self._logits = logits if logits is None else given
        if logits is None:
            if validate_args and not is_traced() and not ((given >= 0) & (given < 1)).all():
                raise ValueError(f"rate is the probability of dropping a unit and lies in [0, 1), but found {rate}")
            self.rate, self.keep = given, 1 - given
        self.units = units
        super().__init__(given.shape[:-1], torch.Size((units,)), validate_args=False)

    @property
    def learned(self) -> bool:
        """Whether a loss must estimate the gradient of the rates: of hard masks that a parameter stands behind."""
        return False

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
        new.__dict__.update(self.__dict__)
        new._batch_shape = checked_shape("batch_shape", batch_shape)
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
        return checked_shape("sample_shape", sample_shape) + self.batch_shape + self.event_shape

    def _check_value(self, value: Any) -> None:
        check_tensors(value=value)
        if value.dim() and value.shape[-1] not in (1, self.units):
            raise ValueError(f"value must have {self.units} units, but found {said(value)}")

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how it is drawn: it needs rsample, or sample")


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
            keep = self.keep.expand(self._full_shape(sample_shape))
            if keep.dtype in (torch.float16, torch.bfloat16):  # which have no 0.9999
                rate = self.rate.expand(keep.shape).to(torch.float32)
                return torch.bernoulli(1 - rate).to(keep.dtype)
            return torch.bernoulli(keep)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        self._check_value(value)
        if self._logits is None:
            log_prob = torch.xlogy(value, self.keep) + torch.xlogy(1 - value, self.rate)
        else:
            logits, value = torch.broadcast_tensors(self._logits, value)
            log_prob = -F.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return log_prob.expand(*log_prob.shape[:-1], self.units).sum(-1)

    def icdf(self, q: Tensor) -> Tensor:
        check_tensors(q=q)
        return (q > self.rate).to(self.keep.dtype)


class ConcreteMask(Mask):
    r"""Relaxed masks (CD eq. 5), differentiable in the rate:

    .. math:: z_k = \sigma\bigl((a_k + \log u - \log(1 - u)) / t\bigr), \quad u \sim \mathrm{Uniform}(0, 1)

    with *a* the log-odds of keeping and *t* the temperature. A relaxed mask does not keep the mean: at rate 0.1
    ``E[z] / keep`` is 0.9985 at temperature 0.1 and 0.950 at 2/3.

    A draw close to 0 or 1 rounds to it, where the density is infinite. So the distribution remembers its last draw
    before rounding, and ``log_prob`` of that very tensor is exact; of any other tensor it takes the entries as they
    are, no closer to 0 and 1 than their type can say.

    :param rate: probability of dropping a unit, in [0, 1). (CD's p is this rate; its eq. 5 writes the mask of
        *dropped* units, ours is one minus it.)
    :param logits: instead of ``rate``, the log-odds of keeping.
    :param units: number of masked units.
    :param temperature: t > 0.
    :raises ValueError: a rate outside [0, 1), a wrong shape, a temperature that is not positive and finite.

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
        if validate_args:
            check_positive(temperature=temperature)
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
            self._check_value(value)
            y = torch.logit(value, eps=torch.finfo(value.dtype).eps)
        noise = self.temperature * y - self.logits
        # logistic density of the noise, times d noise / d z = t / (z (1 - z))
        log_prob = math.log(self.temperature) - noise - 2 * F.softplus(-noise) + F.softplus(y) + F.softplus(-y)
        return log_prob.sum(-1)

    def icdf(self, q: Tensor) -> Tensor:
        check_tensors(q=q)
        return torch.sigmoid((self.logits + torch.logit(q)) / self.temperature)


def _checked(rate: Any, logits: Any, units: Any) -> Tensor:
    """Rates or logits as a tensor; their range and shape are looked at by who asks."""
    check_counts(units=units)
    if logits is not None:
        check_tensors(logits=logits)
        if not logits.is_floating_point() or (not is_traced() and bool(logits.isnan().any())):
            raise ValueError(f"logits must be real numbers, none of them NaN, but found {said(logits)}")
        return logits
    return as_numbers("rate", rate)
