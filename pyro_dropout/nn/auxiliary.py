"""Dropout inside a guide, as a sample site: what makes an encoder's posterior a mixture over masks."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_dropout._checks import check_flags, check_positive, check_tensors, said
from pyro_dropout.masks.distributions import BernoulliMask, ConcreteMask, Mask


class AuxiliaryDropout(nn.Module):
    r"""``nn.Dropout`` for the networks of a guide, whose mask is an auxiliary sample site:

    .. math:: x \mapsto x \cdot z / (1 - \mathrm{rate}), \quad z_k \sim \mathrm{Bernoulli}(1 - \mathrm{rate}_k)

    (LBD eq. 5), one mask for each row of the plates that it is called in. A guide with it is a mixture over masks,
    which :class:`~pyro_dropout.SemiImplicitDropout_ELBO` bounds; other losses of this package refuse it, and Pyro's
    own count the density of the mask, for which the model has nothing. It draws in training and in evaluation;
    ``poutine.condition(guide, {"mask": dropout.mask().keep})`` leaves inputs as they are.

    :param units: of the last dimension of inputs.
    :param rate: probability of *dropping* a unit, in [0, 1): a number, or a tensor with one per unit. If rates are
        learned, in (0, 1): where learning starts.
    :param learnable: learn the rate, one of all units unless ``per_unit``; ``logits`` of keeping is the parameter.
    :param per_unit: learn one rate per unit.
    :param temperature: of relaxed masks (CD eq. 5), whose rates are learned through the draw; hard ones where it is
        None.
    :param sparse: inputs are data, 0 for most units: estimates of rates take the others alone.
    :param name: of the sample site; two of one guide need two.
    :raises ValueError: a rate outside its range or of a wrong shape; ``per_unit`` or ``temperature`` without
        ``learnable``; at a call: inputs of another number of units.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_dropout import SemiImplicitDropout_ELBO
        >>> encoder = nn.Sequential(AuxiliaryDropout(8, rate=0.5, learnable=True), nn.Linear(8, 2))
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Bernoulli(logits=eta.unsqueeze(-1) * torch.ones(8)).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("data", len(x)):
        ...         mean, log_scale = encoder(x).unbind(-1)
        ...         pyro.sample("eta", dist.Normal(mean, log_scale.exp()))
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), SemiImplicitDropout_ELBO(extra_masks=2))
        >>> svi.step((torch.rand(5, 8) < 0.5).float()) > 0
        True
        >>> encoder[0].mask().rate.shape
        torch.Size([1])
    """

    def __init__(
        self,
        units: int,
        rate: Any = 0.5,
        *,
        learnable: bool = False,
        per_unit: bool = False,
        temperature: float | None = None,
        sparse: bool = False,
        name: str = "mask",
    ) -> None:
        super().__init__()
        check_flags(learnable=learnable, per_unit=per_unit, sparse=sparse)
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be that of a sample site, but found {said(name)}")
        if not learnable and (per_unit or temperature is not None):
            raise ValueError("per_unit and temperature say how rates are learned: give learnable=True too")
        if temperature is not None:
            check_positive(temperature=temperature)
        given = BernoulliMask(rate, units=units)  # checks both
        if given.batch_shape:
            raise ValueError(f"rate must be a number or one per unit, but found {said(rate)}")
        if learnable and not bool((given.rate > 0).all()):
            raise ValueError(f"rate must be above 0, where rates that are learned start, but found {said(rate)}")
        if learnable and not per_unit and given.rate.numel() > 1:
            raise ValueError(f"rate has one number per unit: give per_unit=True too; found {said(rate)}")
        self.units, self.temperature, self.sparse, self.name = units, temperature, sparse, name
        dtype = torch.get_default_dtype()
        if learnable:
            self.logits = nn.Parameter(given.logits.to(dtype).expand(units if per_unit else 1).clone())
        else:
            self.register_buffer("rate", given.rate.to(dtype))

    def mask(self) -> Mask:
        """The distribution of a mask, which has ``rate`` and ``keep``."""
        if "rate" in self._buffers:
            return BernoulliMask(self.rate, units=self.units, validate_args=False)
        if self.temperature is None:
            return BernoulliMask(logits=self.logits, units=self.units, validate_args=False)
        return ConcreteMask(logits=self.logits, units=self.units, temperature=self.temperature, validate_args=False)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors(x=x)
        if x.dim() == 0 or x.shape[-1] != self.units:
            raise ValueError(f"inputs must have {self.units} units, but found {said(x)}")
        mask = self.mask()
        infer = {"is_auxiliary": True, **({"relevant": x != 0} if self.sparse else {})}
        return x * pyro.sample(self.name, mask, infer=infer) / mask.keep

    def extra_repr(self) -> str:
        how = "fixed rate" if "rate" in self._buffers else "learned rate"
        return f"{self.units}, {how}, name={self.name!r}"
